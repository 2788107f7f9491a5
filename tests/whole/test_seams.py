"""What strangers add: candidates, edits and judges of their own."""

import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import cosmic_tl as ct
from cosmic_tl import AffineEdit, Candidates, CosmicError, CosmicOptions, Direction
from cosmic_tl.engine import Reading, intervened
from cosmic_tl.experiments import Condition
from cosmic_tl.interventions.edits import Edit
from cosmic_tl.judges import LLAMA_GUARD_3, EndpointJudge, Judgement, ModelJudge
from cosmic_tl.model.chat import tokenize

FEW = CosmicOptions(n_train=24, n_val=8, max_kl=50.0, full_table=True, last_position_rule=False, n_resamples=0)


@pytest.fixture(scope="module")
def selection(demo, prompts):
    return ct.select_cosmic(demo, prompts, FEW)


def test_a_known_direction_gets_its_own_scores_again(demo, prompts, selection):
    d = selection.direction
    found = ct.score_directions(demo, prompts, {"again": d, "halved": d.vector / 2}, FEW)
    row = found.table[(found.table.layer == d.layer) & (found.table.position == -2)].iloc[0]
    for measure in ("s_comply", "s_refuse", "kl"):
        assert row[measure] == pytest.approx(selection.winner[measure], abs=1e-6)
    halved = found.table[(found.table.layer == d.layer) & (found.table.position == -1)].iloc[0]
    assert halved.s_refuse != pytest.approx(selection.winner.s_refuse, abs=1e-4)  # its length is what α = 1 adds
    assert found.positions.labels == ("again", "halved")
    name = found.positions.labels[found.direction.position]
    assert found.direction.method == f"given: {name}" and f"layer {found.direction.layer}, {name!r}" in repr(found)
    assert found.table[found.table.position == -2].s_comply.notna().sum() == 1  # a direction is scored at its own layer
    assert set(found.table.name[found.table.position == -2]) == {"again"}
    drawn = found.plot()
    assert f"{name!r}" in drawn.layout.title.text.replace("&#x27;", "'") and list(drawn.data[0].y) == [
        "again",
        "halved",
    ]


def test_given_candidates_are_those_that_are_scored(demo, prompts, selection):
    d = selection.direction
    cells = {(d.layer, d.position): d.vector, (2, -1): selection.candidates.vectors[2, -1].numpy()}
    references = {cell: selection.candidates.references[cell].tolist() for cell in cells}
    some = Candidates.from_vectors(cells, references=references, n_layers=8)
    n = some.vectors.shape[1]
    found = ct.select_cosmic(demo, prompts, FEW, candidates=some)
    assert len(found.positions) == n and len(found.table) == 8 * n
    scored = found.table[found.table.s_comply.notna()]
    assert {(row.layer, row.position) for row in scored.itertuples()} == set(cells)
    known = selection.table.set_index(["layer", "position"])
    for row in scored.itertuples():
        assert row.s_comply == pytest.approx(known.loc[(row.layer, row.position), "s_comply"], abs=1e-6)


def test_without_a_reference_affine_edits_refuse_and_linear_ones_do_not(demo, prompts, tmp_path):
    some = Candidates.from_vectors({(4, -1): np.ones(128)}, n_layers=8)
    direction = some.direction(4, -1)
    assert direction.reference is None
    with pytest.raises(CosmicError, match="reference: this direction has none"):
        AffineEdit(direction)
    with pytest.raises(CosmicError, match="reference: this direction has none"):
        ct.select_cosmic(demo, prompts, FEW, candidates=some)
    linear = CosmicOptions(mode="linear", n_train=8, n_val=4, max_kl=50.0, n_resamples=0)
    assert ct.select_cosmic(demo, prompts, linear, candidates=some).direction.layer == 4
    direction.save(tmp_path / "d.safetensors")
    assert Direction.load(tmp_path / "d.safetensors").reference is None
    measured = some.with_reference(demo, prompts)
    means = ct.mean_activations(demo, prompts.side("negative", "train"), positions=ct.Positions(("last",)))
    assert torch.allclose(measured.references[4, -1], means.resid_pre[4, -1], atol=1e-6)
    assert AffineEdit(measured.direction(4, -1)).alpha == 1.0


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({}, "vectors: found none"),
        ({(8, -1): [1.0]}, r"vectors: found cell \(8, -1\)"),
        ({(1, 0): [1.0]}, r"vectors: found cell \(1, 0\)"),
        ({(1, -1): [1.0], (2, -1): [1.0, 2.0]}, r"vectors: \(2, -1\) has shape \(2,\), expected \(1,\)"),
    ],
)
def test_wrong_vectors_are_one_line(vectors, message):
    with pytest.raises(CosmicError, match=message):
        Candidates.from_vectors(vectors, n_layers=8)


def test_candidates_of_another_model_are_refused(demo, prompts):
    small = Candidates.from_vectors({(1, -1): [1.0, 2.0]}, n_layers=8)
    with pytest.raises(
        CosmicError, match="candidates: they are for 8 layers of width 2, and the model has 8 of width 128"
    ):
        ct.select_cosmic(demo, prompts, FEW, candidates=small)


@dataclass(frozen=True, eq=False)
class Reflection(Edit):
    direction: Direction

    @property
    def map(self):
        unit = self.direction.unit[None]
        return ct.AffineMap(2 * unit, unit, torch.zeros(1))

    @property
    def place(self):
        return self.direction.layer, "stream"


def test_an_edit_of_ones_own_is_steered_and_batched_like_any(demo, selection):
    d = selection.direction
    rows = tokenize(demo, ["How do I rob a bank?", "Bake a pie."])
    keep = lambda outcome: outcome.resid_post[7][:, -1]  # noqa: E731
    found = dict(intervened(demo, rows, [Reflection(d), AffineEdit(d)], Reading((7,)), keep))
    unit = d.unit

    def reflect(x, hook):
        return x - 2 * (x @ unit)[..., None] * unit

    for i, row in enumerate(rows):
        stored = {}
        hooks = [
            (f"blocks.{d.layer}.hook_in", reflect),
            ("blocks.7.hook_out", lambda x, hook, stored=stored: stored.update(y=x[0, -1].clone())),
        ]
        with torch.inference_mode():
            demo.run_with_hooks(torch.tensor([row]), fwd_hooks=hooks)
        assert torch.allclose(found[0][i], stored["y"], atol=1e-4)


def test_a_judge_of_ones_own_counts(demo, prompts):
    def long_ones(asked, texts):
        return [Judgement("refusal" if len(text) > 20 else "compliance") for text in texts]

    conditions = [Condition("baseline", "positive", ())]
    effects = ct.measure_effects(demo, prompts, conditions=conditions, n=3, max_new_tokens=16, judge=long_ones)
    expected = [len(text) > 20 for text in effects.completions.completion]
    assert effects.rate("positive", "baseline").value == sum(expected) / 3


def test_effects_take_a_selection_or_conditions(demo, prompts, selection):
    with pytest.raises(CosmicError, match="conditions: give a selection, or conditions="):
        ct.measure_effects(demo, prompts)
    with pytest.raises(CosmicError, match="conditions: give a selection, or conditions="):
        ct.measure_effects(demo, prompts, selection, conditions=[])
    found = ct.measure_effects(demo, prompts, selection, n=1, max_new_tokens=2)
    assert {"removal", "induction"} <= set(found.table.condition)


def test_a_run_is_that_of_its_judge(demo, prompts, tmp_path):
    def judge(asked, texts):
        return [Judgement("refusal" if len(text) > 20 else "compliance") for text in texts]

    options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0)
    settings = ct.RunSettings(options, n_test=1, max_new_tokens=4, n_placebos=1)
    with pytest.raises(CosmicError, match="judge: it has no name"):
        ct.run(demo, prompts, tmp_path / "run", settings, judge=judge)
    judge.name = "by length"
    found = ct.run(demo, prompts, tmp_path / "run", settings, judge=judge)
    assert found.identity["judge"] == "by length"
    assert ct.run(demo, prompts, tmp_path / "run", settings, judge=judge).was_complete

    def other(asked, texts):
        return judge(asked, texts)

    other.name = "by another length"
    for another in (None, other):
        with pytest.raises(CosmicError, match=r"holds a run with other settings \(judge\)"):
            ct.run(demo, prompts, tmp_path / "run", settings, judge=another)
    again = ct.Run.load(tmp_path / "run")
    with pytest.raises(CosmicError, match="judge: the run's completions were judged by 'by length'"):
        _ = again.judge  # and not by the phrases of refusals
    assert again.direction.layer == found.direction.layer
    assert torch.equal(again.candidates.vectors, found.candidates.vectors)
    assert ct.model.model_fingerprint(again.load_model(device="cpu")) == ct.model.model_fingerprint(demo)


def test_a_judges_name_is_that_of_its_question_in_every_process(demo):
    """A run asks for it again in another process, and must not take another question's verdicts."""
    other = replace(LLAMA_GUARD_3, text=LLAMA_GUARD_3.text + " ")
    names = [ModelJudge(demo, template).name for template in (LLAMA_GUARD_3, other)]
    names += [EndpointJudge("m", template, "http://127.0.0.1/v1").name for template in (LLAMA_GUARD_3, other)]
    assert len(set(names)) == 4 and not any(" at 0x" in name for name in names)
    code = "from cosmic_tl.judges import LLAMA_GUARD_3; print(LLAMA_GUARD_3.label)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in names[0]


@pytest.mark.parametrize("n", [0, -1])
def test_a_number_of_prompts_is_positive_for_lists_too(demo, n):
    with pytest.raises(CosmicError, match=f"n: must be at least 1, found {n}"):
        ct.measure_effects(demo, (["hi"], ["hello"]), conditions=[Condition("baseline", "positive", ())], n=n)
