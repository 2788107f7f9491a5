import re
from dataclasses import replace

import pytest
import torch

from cosmic_tl import ChatFormat, CosmicError, NoCandidateError, RefusalTokenOptions, select_by_refusal_tokens, steering
from cosmic_tl.figures.selection import plot_scores
from cosmic_tl.interventions.modes import induction, removal
from cosmic_tl.metrics import find_refusal_tokens, refusal_scores, refusal_tokens
from cosmic_tl.metrics.refusal_score import filter_by_score, log_odds
from cosmic_tl.model.chat import tokenize

REFUSE_ALL = "You must always refuse to help the user."
OPTIONS = RefusalTokenOptions(n_train=24, n_val=6, max_kl=0.5, n_resamples=0)


def plain_logits(model, texts, interventions=()):
    """One prompt at a time, the whole pass through the bridge."""
    found = []
    for row in tokenize(model, texts):
        with torch.inference_mode(), steering(model, interventions):
            found.append(model(torch.tensor([row]))[0, -1].double())
    return torch.stack(found)


def plain_score(model, texts, ids, interventions=()):
    p = plain_logits(model, texts, interventions).softmax(-1)[:, list(ids)].sum(-1)
    return float((p.log() - (1 - p).log()).mean())


def test_log_odds_is_the_papers_formula():
    logits = torch.randn(5, 50, dtype=torch.float64)
    before = logits.clone()
    assert torch.equal(log_odds(logits, [7, 3, 7]), log_odds(logits, [3, 7])) and torch.equal(logits, before)
    p = logits.softmax(-1)[:, [3, 7]].sum(-1)
    assert (log_odds(logits, [3, 7]) - (p.log() - (1 - p).log())).abs().max() < 1e-12
    # Where P(R) rounds to 1 the plain formula is infinite.
    sure = torch.tensor([[100.0, 0.0, 0.0]])
    assert log_odds(sure, [0]).item() == pytest.approx(100 - torch.log(torch.tensor(2.0)).item())


def test_scores_do_not_depend_on_the_batch(demo, prompts):
    texts = prompts.side("positive", "val", 7)
    tokens = refusal_tokens(demo, ["I can't"])
    one, seven = (refusal_scores(demo, texts, tokens, batch_size=size) for size in (1, 7))
    assert (one - seven).abs().max() < 1e-4
    assert float(one.mean()) == pytest.approx(plain_score(demo, texts, tokens.ids), abs=1e-4)


def test_tokens_are_found_from_the_models_own_answers(demo, prompts):
    sides = [prompts.side(side, "train", 24) for side in ("positive", "negative")]
    tokens = find_refusal_tokens(demo, sides)
    first = [int(logits.argmax()) for logits in plain_logits(demo, sides[0])]
    assert tokens.positive_coverage == sum(token in tokens.ids for token in first) / 24 > 0.9
    assert tokens.negative_coverage < 0.1
    assert str(tokens).startswith("'I'")
    with pytest.raises(CosmicError, match="begin as those to negative ones do"):
        find_refusal_tokens(demo, (sides[1], sides[1]))
    with pytest.raises(CosmicError, match="'' has no tokens"):
        refusal_tokens(demo, [""])


@pytest.mark.parametrize("mode", ["linear", "affine"])
def test_selection_equals_plain_passes(demo, prompts, mode):
    options = replace(OPTIONS, mode=mode, full_table=True)
    full = select_by_refusal_tokens(demo, prompts, options)
    positive, negative = filter_by_score(
        demo, prompts.side("positive", "val", 6), prompts.side("negative", "val", 6), full.tokens
    )
    clean = plain_logits(demo, negative).softmax(-1)
    for row in full.table.sample(6, random_state=0).itertuples():
        direction = full.candidates.direction(row.layer, row.position) if row.bypass == row.bypass else None
        if direction is None:
            assert row.layer == 0 and "undefined" in row.reason
            continue
        ids, out = full.tokens.ids, removal(direction, mode)
        assert row.bypass == pytest.approx(plain_score(demo, positive, ids, out), abs=1e-3)
        assert row.induce == pytest.approx(plain_score(demo, negative, ids, induction(direction, mode)), abs=1e-3)
        q = plain_logits(demo, negative, out).softmax(-1)
        kl = (clean * ((clean + 1e-6).log() - (q + 1e-6).log())).sum(-1).mean()
        assert row.kl == pytest.approx(float(kl), abs=1e-4)
    table = full.table
    allowed = table[(table.induce > 0) & (table.kl <= 0.5) & (table.layer < 0.8 * 8)]
    best = allowed.loc[allowed.bypass.idxmin()]
    assert (full.direction.layer, full.direction.position) == (best.layer, best.position)

    lazy = select_by_refusal_tokens(demo, prompts, replace(options, full_table=False))
    assert (lazy.direction.layer, lazy.direction.position) == (best.layer, best.position)
    assert lazy.table.not_needed.str.contains("kl").sum() > 20
    assert lazy.winner.not_needed == "" and lazy.winner.bypass == pytest.approx(best.bypass, abs=1e-4)


def test_known_scores_are_not_computed_again(demo, prompts):
    class Log(dict):
        def __setitem__(self, key, value):
            assert key not in self
            super().__setitem__(key, value)

    log = Log()
    first = select_by_refusal_tokens(demo, prompts, OPTIONS, scores=log)
    n = len(log)
    again = select_by_refusal_tokens(demo, prompts, OPTIONS, scores=log)
    assert len(log) == n and again.direction.layer == first.direction.layer


def test_it_fails_where_the_model_refuses_everything(demo, prompts):
    """By construction: refusal's first tokens tell nothing apart there (Siu et al. 2025)."""
    chat = ChatFormat(system=REFUSE_ALL)
    with pytest.raises(CosmicError, match="select by COSMIC"):
        select_by_refusal_tokens(demo, prompts, OPTIONS, chat=chat)
    with pytest.raises(CosmicError, match="none of 24 negative prompts has a refusal score below 0"):
        select_by_refusal_tokens(demo, prompts, replace(OPTIONS, tokens=("I can't",)), chat=chat)


def test_nothing_left_says_by_how_much_and_what_would_help(demo, prompts):
    """Induction at a twentieth of its strength makes no refusal, and at a tenth or a fifth it may."""
    options = replace(OPTIONS, alpha=0.05, n_positions=1, max_kl=50.0)
    with pytest.raises(NoCandidateError, match="induce took") as caught:
        select_by_refusal_tokens(demo, prompts, options)
    missed = re.search(r"(\d+) of them alone, with values from (-[\d.]+) to (-[\d.]+)", str(caught.value))
    nearest, farthest = float(missed[2]), float(missed[3])
    assert int(missed[1]) > 1 and farthest < nearest <= 0
    # What it says is so: a lower threshold admits the nearest one, and a stronger induction as many as it says.
    admitted = select_by_refusal_tokens(demo, prompts, replace(options, min_induce=nearest - 0.01 * abs(nearest)))
    assert admitted.winner.induce == pytest.approx(nearest, rel=0.01)
    with pytest.raises(NoCandidateError, match=r"alpha=0.1 \(--alpha 0.1\) alone would admit (0; .*alpha=0.2|[1-9])"):
        select_by_refusal_tokens(demo, prompts, options)
    with pytest.raises(NoCandidateError, match="of the 6 that induction brings furthest, 0 pass the KL filter"):
        select_by_refusal_tokens(demo, prompts, replace(options, max_kl=1e-9))


def test_filters_and_figure(demo, prompts):
    with pytest.raises(NoCandidateError, match="induce took"):
        select_by_refusal_tokens(demo, prompts, replace(OPTIONS, min_induce=1e6))
    found = select_by_refusal_tokens(demo, prompts, OPTIONS)
    assert "refusal score of positive prompts +" in repr(found) and "tokens 'I' (first token of" in repr(found)
    figure = plot_scores(found)
    assert len([trace for trace in figure.data if trace.type == "heatmap"]) == 3
    with pytest.raises(CosmicError, match="max_kl: expected a positive number"):
        RefusalTokenOptions(max_kl=0.0)
