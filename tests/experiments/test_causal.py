"""Causal maps equal plain hooks, and put a planted cause first."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from cosmic_tl import (
    CosmicError,
    CosmicOptions,
    Direction,
    Run,
    RunSettings,
    load_model,
    load_prompts,
    run,
    select_cosmic,
)
from cosmic_tl.experiments import causal_map, smallest_edit
from cosmic_tl.metrics import RefusalTokens, find_refusal_tokens, refusal_tokens
from cosmic_tl.metrics.divergence import kl_divergence
from cosmic_tl.metrics.refusal_score import log_odds
from cosmic_tl.model.chat import tokenize
from tests.tiny import save

SIZES = {"n_train": 12, "n_val": 6, "n_positions": 2}


@pytest.fixture(scope="module")
def selection(demo, prompts):
    return select_cosmic(demo, prompts, CosmicOptions(n_train=32, n_val=16, n_resamples=0))


@pytest.fixture(scope="module")
def tokens(demo, prompts):
    return find_refusal_tokens(demo, prompts)


@pytest.fixture(scope="module")
def found(demo, prompts, selection, tokens):
    return causal_map(demo, prompts, selection, tokens=tokens, **SIZES)


def _pass(model, row, layer, edit=()):
    """The last token's stream after a layer and its logits, by a whole pass."""
    kept = []
    hooks = [*edit, (f"blocks.{layer}.hook_resid_post", lambda x, hook: kept.append(x[0, -1].double()))]
    with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
        logits = model(torch.tensor([row]))[0, -1:]
    return kept[0], logits


def _written(model, prompts, layer, position):
    """What a block adds at a position, mean over prompts."""
    added = []
    for row in tokenize(model, prompts):
        kept = []

        def keep(x, hook, kept=kept):
            kept.append(x[0, position].double())

        hooks = [(f"blocks.{layer}.{name}", keep) for name in ("hook_resid_pre", "hook_resid_post")]
        with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
            model(torch.tensor([row]))
        added.append(kept[1] - kept[0])
    return torch.stack(added).mean(0)


@pytest.mark.parametrize(
    ("layer", "position", "treatment"), [(2, -1, "direction"), (4, -2, "direction"), (3, -2, "whole")]
)
def test_it_is_what_plain_hooks_give(demo, prompts, selection, tokens, found, layer, position, treatment):
    unit, (at,) = selection.direction.unit.double(), selection.evaluation_layers
    rows = {side: tokenize(demo, prompts.side(side, "val", 6)) for side in ("positive", "negative")}
    clean = {side: [_pass(demo, row, at) for row in some] for side, some in rows.items()}
    for side, other, sign in (("positive", "negative", -1), ("negative", "positive", 1)):
        mean = _written(demo, prompts.side(other, "train", 12), layer, position)
        there = torch.stack([stream for stream, _ in clean[other]]).mean(0)
        entered = []

        def leave(y, hook, mean=mean, entered=entered):
            added = y[0, position].double() - entered[-1][0, position].double()
            new = mean if treatment == "whole" else added + ((mean - added) @ unit) * unit
            y = y.clone()
            y[0, position] = (entered[-1][0, position].double() + new).to(y.dtype)
            return y

        def enter(x, hook, entered=entered):
            entered.append(x)

        edit = [(f"blocks.{layer}.hook_resid_pre", enter), (f"blocks.{layer}.hook_resid_post", leave)]
        effects = []
        for row, (stream, logits) in zip(rows[side], clean[side], strict=True):
            moved, now = _pass(demo, row, at, edit)
            effects.append(
                [
                    sign * float(log_odds(now, tokens.ids) - log_odds(logits, tokens.ids)),
                    float(cosine_similarity(moved, there, dim=0) - cosine_similarity(stream, there, dim=0)),
                    float(kl_divergence(logits, now)),
                ]
            )
        own = found.table[
            (found.table.side == side)
            & (found.table.treatment == treatment)
            & (found.table.layer == layer)
            & (found.table.position == position)
        ].set_index("measure")
        assert own.effect[["score", "cosine", "kl"]].tolist() == pytest.approx(np.mean(effects, 0).tolist(), abs=1e-4)
        assert (own.low <= own.effect).all() and (own.effect <= own.high).all()


def test_the_concept_acts_where_the_placebo_does_not(found):
    for side in ("positive", "negative"):
        first = found.strongest(side, n=1).iloc[0]
        assert first.effect > 5 * abs(first.placebo) and first.low > 0
        assert 0.2 < first.share < 1.5
    shares = found.shares[found.shares.measure == "score"]
    whole = found.table[(found.table.treatment == "whole") & (found.table.measure == "score")]
    both = shares.merge(whole, on=["side", "measure", "layer", "position"], suffixes=("", "_whole"))
    undefined = (both.low_whole <= 0) & (both.high_whole >= 0)
    assert undefined.any() and (both.share.isna() == undefined).all()


def test_what_is_not_reached_is_exactly_nothing(found):
    """No share of rounding over rounding."""
    late = (found.table.measure == "cosine") & (found.table.layer == 7)  # above the evaluation layers
    aside = (found.table.layer == 7) & (found.table.position == -2)  # in the last block only the last token is read
    assert late.any() and (found.table[late | aside].effect.abs() < 1e-12).all()
    some = found.shares
    late, aside = (some.measure == "cosine") & (some.layer == 7), (some.layer == 7) & (some.position == -2)
    assert some[late | aside].share.isna().all()


def test_spans_add_up_at_their_ends(demo, prompts, selection, tokens, found):
    options = {"tokens": tokens, "whole": False, **SIZES}
    up_to, from_on = (causal_map(demo, prompts, selection, span=span, **options) for span in ("up-to", "from"))

    def effects(some, layer):
        own = some.table[(some.table.treatment == "direction") & (some.table.layer == layer)]
        return own.set_index(["side", "measure", "position"]).effect

    assert (effects(up_to, 0) - effects(found, 0)).abs().max() < 1e-6  # one layer alone
    assert (effects(from_on, 7) - effects(found, 7)).abs().max() < 1e-6
    assert (effects(up_to, 7) - effects(from_on, 0)).abs().max() < 1e-6  # all of them
    assert effects(up_to, 7).max() > effects(found, 7).max()
    assert up_to.shares.empty


def test_a_map_that_was_stopped_goes_on_to_the_same(demo, prompts, selection, tokens, found):
    class Stopped(Exception):
        pass

    class Limited(dict):
        def __setitem__(self, key, value):
            if len(self) == 20:
                raise Stopped
            super().__setitem__(key, value)

    some = Limited()
    with pytest.raises(Stopped):
        causal_map(demo, prompts, selection, tokens=tokens, effects=some, **SIZES)
    known = dict(some)
    again = causal_map(demo, prompts, selection, tokens=tokens, effects=known, **SIZES)
    assert len(known) > len(some) == 20
    for one, other in ((again.table, found.table), (again.shares, found.shares)):
        assert one.equals(other)


def test_removal_leaves_the_negative_prompts_alone(demo, prompts, selection):
    found = causal_map(demo, prompts, selection, treatment="removal", part="mlp", whole=False, **SIZES)
    assert found.table.side.unique().tolist() == ["positive"] and found.measures == ["cosine", "kl"]


def test_some_layers_are_those_of_the_whole_map(demo, prompts, selection, tokens, found):
    some = causal_map(demo, prompts, selection, tokens=tokens, layers=(4, 2), **SIZES)
    expected = found.table[found.table.layer.isin((2, 4))].reset_index(drop=True)
    assert (some.table.drop(columns=["effect", "low", "high"]) == expected.drop(columns=["effect", "low", "high"])).all(
        None
    )
    assert (some.table.effect - expected.effect).abs().max() < 1e-5
    options = {"tokens": tokens, "span": "from", "whole": False, **SIZES}
    one = causal_map(demo, prompts, selection, layers=(5,), **options).table
    every = causal_map(demo, prompts, selection, **options).table
    assert one.effect.tolist() == pytest.approx(every[every.layer == 5].effect.tolist(), abs=1e-5)


def test_the_last_tokens_that_suffice(demo, prompts, selection, tokens, found):
    options = {"tokens": tokens, "whole": False, "n_train": 12, "n_val": 6, "n_positions": 3}
    every = causal_map(demo, prompts, selection, span="from", token_span="from", layers=(0,), **options)
    one = causal_map(demo, prompts, selection, span="from", layers=(0,), **options)

    def effects(some, side):
        own = some.table[
            (some.table.treatment == "direction") & (some.table.measure == "score") & (some.table.side == side)
        ]
        return own.set_index("position").effect

    for side in ("positive", "negative"):
        assert effects(every, side)[-1] == pytest.approx(effects(one, side)[-1], abs=1e-5)  # the last token alone
        assert effects(every, side)[-3] > effects(one, side)[-3]
        n = every.fewest_tokens(side)
        assert effects(every, side)[-n] >= 0.9 * effects(every, side)[-3]
        assert n == 1 or effects(every, side)[-n + 1] < 0.9 * effects(every, side)[-3]
    assert every.fewest_tokens("negative", goal=0.01) == 1
    for side, sentence in zip(("positive", "negative"), every.scopes(), strict=True):
        n = every.fewest_tokens(side)
        assert f"the last {n} tokens do" in sentence if n > 1 else "the last token alone does" in sentence
        assert sentence in repr(every)
    assert one.scopes() == []
    assert "each token and all after it" in every.plot().layout.title.subtitle.text
    with pytest.raises(CosmicError, match=r"^token_span: the map exchanges one token at a time"):
        one.fewest_tokens()
    with pytest.raises(CosmicError, match=r"^goal: found 2"):
        every.fewest_tokens(goal=2.0)


def test_single_heads_are_what_attention_is_made_of(demo, prompts, selection, tokens):
    """Each one's exchange is a small change, so together they come near to that of all of attention."""
    options = {"tokens": tokens, "layers": (2, 3), **SIZES}
    heads = causal_map(demo, prompts, selection, part="head", **options)
    together = causal_map(demo, prompts, selection, part="attention", **options)
    assert heads.place == ["layer", "position", "head"] and sorted(set(heads.table["head"])) == [0, 1, 2, 3]

    def effects(found):
        some = found.table[(found.table.measure == "score") & (found.table.treatment == "direction")]
        return some.groupby(["side", "layer", "position"]).effect.sum()

    one, other = effects(heads), effects(together)
    assert one.corr(other) > 0.9 and (one - other).abs().max() < 0.3 * other.abs().max()
    assert "head" in heads.strongest() and len(heads.plot().data[0].x) == 8


def test_pairs_are_exchanged_pair_by_pair(demo, selection, tokens):
    sides = ["Steal a car.", "Rob the old bank clerk."], ["Wash a car.", "Thank the old bank clerk."]
    options = {"tokens": tokens, "treatment": "paired", "n_positions": 2, "layers": (2, 3)}
    both = causal_map(demo, sides, selection, **options).table
    each = [causal_map(demo, ([one], [other]), selection, **options).table for one, other in zip(*sides, strict=True)]
    exact = both.measure != "cosine"  # which looks at the mean of the other class
    mean = (each[0].effect + each[1].effect) / 2
    assert (both.effect - mean)[exact].abs().max() < 1e-5
    # The whole stream of the counterpart, at the last token and just before the end, is the counterpart's answer.
    last = causal_map(demo, sides, selection, part="stream", **{**options, "layers": (7,)}).table
    whole = (
        last[(last.treatment == "whole") & (last.measure == "score") & (last.position == -1)].set_index("side").effect
    )
    scores = [_scores(demo, side, tokens) for side in sides]
    assert whole["positive"] > 0 and whole["positive"] == pytest.approx(whole["negative"], rel=0.2)
    assert float((scores[0] - scores[1]).mean()) * whole["positive"] > 0
    with pytest.raises(CosmicError, match=r"^prompts: found 2 positive and 1 negative ones, and pairs are as many"):
        causal_map(demo, (sides[0], sides[1][:1]), selection, **options)
    some = load_prompts(positive={"val": sides[0]}, negative={"val": sides[1]}, shuffle=False)
    with pytest.raises(CosmicError, match=r"has no val pairs; use treatment='interchange'"):
        causal_map(demo, some, selection, **options)


def _scores(model, prompts, tokens):
    return torch.cat([log_odds(_pass(model, row, 7)[1], tokens.ids) for row in tokenize(model, prompts)])


def test_a_run_says_where_it_happens(demo, prompts, tmp_path):
    options = CosmicOptions(n_train=16, n_val=8, n_positions=2, max_kl=10.0, n_resamples=0)
    settings = RunSettings(options, n_test=4, max_new_tokens=4, n_placebos=1, causal=3)
    made = run(demo, prompts, tmp_path / "run", settings)
    again = Run.load(tmp_path / "run")
    assert again.causal.table.equals(made.causal.table) and again.causal.n_prompts == (3, 3)
    held_out = load_prompts(
        positive={"train": prompts.side("positive", "train", 16), "val": prompts.side("positive", "test", 3)},
        negative={"train": prompts.side("negative", "train", 16), "val": prompts.side("negative", "test", 3)},
        shuffle=False,
    )
    tokens = find_refusal_tokens(demo, held_out.sides("train"))
    expected = causal_map(demo, held_out, made.selection, tokens=tokens, n_positions=2)
    assert (made.causal.table.effect - expected.table.effect).abs().max() < 1e-6
    said = json.loads((tmp_path / "run" / "summary.json").read_text())["causal"]
    assert said["measure"] == "score" and said["positive"][0]["layer"] == int(made.causal.strongest().layer[0])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Where it happens" in page and "Strongest places, harmful prompts (log-odds)" in page
    # A finished report that is lost is written again from what was measured.
    before, log = made.causal.table, tmp_path / "run" / "resume" / "causal.jsonl"
    lines = log.read_text()
    (tmp_path / "run" / "report.html").unlink()
    assert run(demo, prompts, tmp_path / "run", settings).causal.table.equals(before) and log.read_text() == lines
    without = run(demo, prompts, tmp_path / "other", replace(settings, causal=0))
    assert without.causal is None and without.summary["causal"] is None
    assert "was not measured: which layers and tokens" in (tmp_path / "other" / "report.html").read_text()


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A model in which attention of layer 1 alone brings anything to the last token, and no MLP does anything."""
    model = load_model(save(tmp_path_factory.mktemp("planted"), "llama"), device="cpu")
    with torch.no_grad():
        for number, layer in enumerate(model.original_model.model.layers):
            layer.mlp.down_proj.weight.zero_()
            if number != 1:
                layer.self_attn.o_proj.weight.zero_()
    return model


def test_a_planted_cause_comes_first(planted):
    words = ("pizza", "dog", "shirt", "river", "poem", "plant")
    sides = [[f"Say {word} {marker} {marker} {marker}" for word in words] for marker in ("bake", "paint")]
    prompts = load_prompts(
        positive={"train": sides[0], "val": sides[0], "test": sides[0]},
        negative={"train": sides[1], "val": sides[1], "test": sides[1]},
        shuffle=False,
    )
    rows = [tokenize(planted, side) for side in sides]
    streams = [torch.stack([_pass(planted, row, 2)[0] for row in some]).mean(0) for some in rows]
    difference = (streams[0] - streams[1]).float()
    direction = Direction(difference, streams[1].float(), layer=2, position=-1)
    for part in ("block", "attention"):
        found = causal_map(planted, prompts, direction, evaluation_layers=(2,), part=part, n_positions=3)
        for side in ("positive", "negative"):
            best = found.strongest(side)
            assert (best.layer[0], best.position[0]) == (1, -1)
            assert best.effect[0] > 0 and best.effect[1:].abs().max() < 1e-6  # nothing else writes it
            # The whole activation, replaced by a mean, loses the prompts' own differences too.
            assert 0.2 < best.share[0] < 1
    found = causal_map(planted, prompts, direction, evaluation_layers=(2,), part="mlp", n_positions=3)
    assert found.table.effect.abs().max() < 1e-6


def test_one_place_is_enough_where_one_place_is_all(planted):
    sides = [
        [f"Say {word} {marker} {marker} {marker}" for word in ("pizza", "dog", "river")] for marker in ("bake", "paint")
    ]
    rows = [tokenize(planted, side) for side in sides]
    logits = [torch.cat([_pass(planted, row, 2)[1] for row in some]).mean(0) for some in rows]
    ids = (int((logits[0] - logits[1]).argmax()),)  # what positive prompts are more likely to be answered with
    streams = [torch.stack([_pass(planted, row, 2)[0] for row in some]).mean(0) for some in rows]
    direction = Direction((streams[0] - streams[1]).float(), None, layer=2, position=-1)
    found = smallest_edit(planted, (sides[0], sides[1]), direction, RefusalTokens(ids, ("x",)), n_positions=3)
    assert found.places == [(1, -1)] and found.table.share.tolist() == pytest.approx([1, 1], abs=1e-4)


def test_few_places_do_what_all_do_and_the_placebo_does_not(demo, prompts, selection, tokens):
    found = smallest_edit(
        demo, prompts, selection.direction, tokens, side="negative", most=3, n_train=12, n_val=8, n_positions=2
    )
    table = found.table
    assert table.n.tolist() == [*range(1, len(found.places) + 1), 16] and len(set(found.places)) == len(found.places)
    assert table.share.iloc[-1] == 1 and table.effect.iloc[0] > 5 * abs(table.placebo.iloc[0])
    one = causal_map(demo, prompts, selection, tokens=tokens, n_train=12, n_val=8, n_positions=2)
    first = one.table[
        (one.table.side == "negative")
        & (one.table.measure == "score")
        & (one.table.treatment == "direction")
        & (one.table.layer == found.places[0][0])
        & (one.table.position == found.places[0][1])
    ]
    assert table.effect[0] == pytest.approx(float(first.effect.iloc[0]), abs=1e-5)
    with pytest.raises(CosmicError, match=r"^part: the stream at one place"):
        smallest_edit(demo, prompts, selection.direction, tokens, part="stream")
    with pytest.raises(CosmicError, match=r"^goal: found 2"):
        smallest_edit(demo, prompts, selection.direction, tokens, goal=2)
    compliance = refusal_tokens(demo, ["Of course"])  # which the exchange makes more likely
    with pytest.raises(CosmicError, match=r"^direction: exchanging it at all places changes the score by"):
        smallest_edit(demo, prompts, selection.direction, compliance, n_train=8, n_val=2, n_positions=1, most=1)


def test_bad_input(demo, prompts, selection):
    bare = selection.direction
    for options, message in (
        ({}, r"^tokens: a bare direction comes without anything to measure"),
        ({"evaluation_layers": (9,)}, r"^evaluation_layers: found \(9,\)"),
        ({"evaluation_layers": (6,), "treatment": "swap"}, r"^treatment: "),
        ({"evaluation_layers": (6,), "part": "neuron"}, r"^part: "),
        ({"evaluation_layers": (6,), "part": "head"}, r"^layers: name at least one"),
        (
            {"evaluation_layers": (6,), "part": "head", "layers": (3,), "span": "from"},
            r"^span: found 'from', and single",
        ),
        ({"evaluation_layers": (6,), "layers": (3, 8)}, r"^layers: found \(3, 8\); give some of 0 to 7"),
        ({"evaluation_layers": (6,), "span": "below"}, r"^span: "),
        ({"evaluation_layers": (6,), "n_placebos": 0}, r"^n_placebos: "),
        (
            {"evaluation_layers": (6,), "part": "stream", "span": "from"},
            r"^span: found 'from', and the stream holds all",
        ),
    ):
        with pytest.raises(CosmicError, match=message):
            causal_map(demo, prompts, bare, **options)
    other = replace(bare, vector=normalize(torch.ones(7), dim=0), reference=None)
    with pytest.raises(CosmicError, match=r"^direction: it has width 7"):
        causal_map(demo, prompts, other, evaluation_layers=(6,))
