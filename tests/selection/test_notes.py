"""Notes and warnings of selections on a model, and the divergence prompt by prompt."""

from dataclasses import replace

import pytest
import torch

from cosmic_tl import (
    ChatFormat,
    ContrastSet,
    CosmicError,
    CosmicOptions,
    RefusalTokenOptions,
    run,
    select_by_refusal_tokens,
    select_cosmic,
    steering,
)
from cosmic_tl.data.contrast_set import SPLITS
from cosmic_tl.figures import plot_scores
from cosmic_tl.interventions.modes import removal
from cosmic_tl.metrics import find_refusal_tokens, refusal_scores
from cosmic_tl.metrics.divergence import kl_divergence
from cosmic_tl.metrics.refusal_score import filter_by_score
from cosmic_tl.model.chat import tokenize
from cosmic_tl.runs.settings import RunSettings
from cosmic_tl.selection.scores import parts

OPTIONS = CosmicOptions(n_train=24, n_val=6, n_positions=2, max_kl=50.0)


@pytest.fixture(scope="module")
def mixed(prompts):
    """A set in which two prompts stand on the side on which the model does not treat them."""
    positive, negative = (
        {split: prompts.side(side, split, 24) for split in SPLITS} for side in ("positive", "negative")
    )
    for split in ("train", "val"):
        here, there = positive[split], negative[split]
        here[1], there[2] = there[2], here[1]
    return ContrastSet(
        "mixed", *({split: tuple(some) for split, some in side.items()} for side in (positive, negative))
    )


def test_kl_is_told_prompt_by_prompt(demo, prompts):
    found = select_cosmic(demo, prompts, replace(OPTIONS, n_val=5, full_table=True))
    texts = prompts.side("negative", "val", 5)

    def last(edit=()):
        with torch.inference_mode(), steering(demo, edit):
            return torch.stack([demo(torch.tensor([row]))[0, -1] for row in tokenize(demo, texts)])

    clean, table = last(), found.table.set_index(["layer", "position"])
    for cell in ((2, -1), (4, -2)):
        kl = kl_divergence(clean, last(removal(found.candidates.direction(*cell), "affine")))
        row = table.loc[cell]
        expected = [float(value) for value in (kl.mean(), kl.median(), kl.max())]
        assert [row.kl, row.kl_median, row.kl_max] == pytest.approx(expected, abs=1e-4)
        assert row.kl_max_prompt == kl.argmax()


def test_a_log_without_the_details_is_completed(demo, prompts):
    """As an older version wrote it: the choice would else rest on a divergence that nobody can look into."""
    scores, log = {}, {}
    whole = select_cosmic(demo, prompts, OPTIONS, scores=scores)
    old = {key: value for key, value in scores.items() if not key[2].startswith("kl_")}
    log.update(old)
    again = select_cosmic(demo, prompts, OPTIONS, scores=log)
    winner = (again.direction.layer, again.direction.position)
    assert all((*winner, name) in log and (*winner, name) not in old for name in parts("kl")[1:])
    assert again.winner.kl_max == pytest.approx(whole.winner.kl_max, abs=1e-6)


def test_prompts_that_the_model_treats_as_the_other_side_are_noted_and_can_be_left_out(demo, mixed):
    kept_in = select_cosmic(demo, mixed, OPTIONS)
    before = [note for note in kept_in.notes if note.startswith("Before any edit")]
    assert len(before) == 1 and "1 of 6 positive" in before[0] and "1 of 6 negative" in before[0]
    left_out = select_cosmic(demo, mixed, replace(OPTIONS, filter_prompts=True))
    tokens = find_refusal_tokens(demo, mixed.sides("train", 24))
    splits = {split: filter_by_score(demo, *mixed.sides(split, n), tokens) for split, n in (("train", 24), ("val", 6))}
    own = ContrastSet("own", *({split: tuple(some[i]) for split, some in splits.items()} for i in (0, 1)))
    alone = select_cosmic(demo, own, OPTIONS)
    assert len(own.negative["val"]) == 5
    columns = ["s_comply", "s_refuse", "kl"]
    assert (left_out.table[columns] - alone.table[columns]).abs().max().max() < 1e-5
    assert not [note for note in left_out.notes if note.startswith("Before any edit")]
    assert any("prompts left out by refusal score" in note for note in left_out.notes)
    assert (left_out.table.score - kept_in.table.score).abs().max() > 1e-3


def test_refusal_tokens_note_what_they_keep(demo, mixed):
    options = RefusalTokenOptions(n_train=24, n_val=6, n_positions=2, max_kl=50.0, min_induce=-50.0)
    kept_in = select_by_refusal_tokens(demo, mixed, replace(options, filter_prompts=False))
    assert any(note.startswith("Before any edit") for note in kept_in.notes)
    left_out = select_by_refusal_tokens(demo, mixed, options)
    assert "prompts left out by refusal score" in left_out.notes[0]
    scores = refusal_scores(demo, mixed.side("negative", "val", 6), left_out.tokens)
    assert int((scores > 0).sum()) == 1 and left_out.clean["induce"] < kept_in.clean["induce"]


def test_notes_and_warnings_stand_apart_everywhere(demo, mixed, tmp_path):
    # A layer before the concept: nothing gets there.
    options = replace(OPTIONS, evaluation_layers=(0,))
    result = run(demo, mixed, tmp_path / "run", RunSettings(options, n_test=2, max_new_tokens=4, n_placebos=1))
    selection, summary = result.selection, result.summary
    assert selection.warnings and selection.notes and not set(selection.warnings) & set(selection.notes)
    assert summary["warnings"] == list(selection.warnings)
    assert summary["notes"] == [*selection.notes, *mixed.notes]
    assert summary["scores"]["kl_max"] == selection.winner.kl_max
    subtitle = plot_scores(selection).layout.title.subtitle.text.replace("<br>", " ")
    shown = repr(selection)
    for kind, some in (("Warning", selection.warnings), ("Note", selection.notes)):
        assert all(f"{kind}: {one}" in shown for one in some)
        assert subtitle.count(f"{kind}: ") == len(some)
    assert "Note: " not in (plot_scores(selection, remarks=False).layout.title.subtitle.text or "")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert page.count('<p class="warning" role="note">') == len(selection.warnings)
    assert page.split('aria-label="Notes">')[1].split("</ul>")[0].count("<li>") == len(summary["notes"])


def test_filtering_needs_tokens_that_tell(demo, prompts):
    texts = tuple(prompts.side("negative", "train", 12))
    alike = ContrastSet("alike", *({"train": texts, "val": texts},) * 2)
    with pytest.raises(CosmicError, match="without filter_prompts"):
        select_cosmic(demo, alike, replace(OPTIONS, filter_prompts=True))


def test_a_ranking_that_fell_for_how_prompts_end_is_warned_of(demo, prompts):
    """Both sides from one distribution, without a template: the lowest layers differ most, by their last tokens."""
    texts = [text for pair in zip(prompts.positive["train"], prompts.negative["train"], strict=False) for text in pair]
    half = len(texts) // 2 // 2 * 2
    mixed = replace(
        prompts,
        positive={**prompts.positive, "train": tuple(texts[0:half:4] + texts[1:half:4])},
        negative={**prompts.negative, "train": tuple(texts[2:half:4] + texts[3:half:4])},
    )
    options = CosmicOptions(n_train=24, n_val=6, n_positions=2, max_kl=50.0, n_resamples=0)
    plain = ChatFormat(use_template=False)
    found = select_cosmic(demo, mixed, options, chat=plain)
    assert any("the classes differ by chance" in text for text in found.warnings), found.warnings
    named = select_cosmic(demo, mixed, replace(options, evaluation_layers=(6,)), chat=plain)
    assert not any("by chance" in text for text in named.warnings)  # what is asked for was not ranked
    real = select_cosmic(demo, prompts, options)
    assert not any("by chance" in text for text in real.warnings)
