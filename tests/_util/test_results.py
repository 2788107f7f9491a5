"""Every kind of result is shown, drawn, saved and loaded in one way."""

import importlib
import json
import pkgutil
from dataclasses import dataclass, fields, is_dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

import cosmic_tl as ct
from cosmic_tl._util import results
from cosmic_tl._util.packing import FORMAT, JSON, read_packed, write_packed
from cosmic_tl._util.sealed import write_sealed
from cosmic_tl.check.model_check import Check, ModelCheck
from cosmic_tl.data.behaviours import AnswerPair, BehaviourSet
from cosmic_tl.judges import agreement
from cosmic_tl.runs.directory import Choice
from cosmic_tl.suffixes.analysis import SuffixAnalysis
from cosmic_tl.suffixes.suffix import Suffix

SMALL = ct.CosmicOptions(n_train=8, n_val=4, max_kl=50.0)
YES = AnswerPair("Is it okay to rest?", "Yes", "No")
TEXTS = ["a b c", "d e f"]


@pytest.fixture(scope="module")
def selection(demo, prompts):
    return ct.select_cosmic(demo, prompts, SMALL)


def _two_rounds(demo, prompts):
    return ct.two_rounds(demo, prompts, SMALL, alphas=(0.0, 1.0), n=2, max_new_tokens=4)


def _behaviour(demo):
    behaviour = BehaviourSet("rest", {"train": (YES, replace(YES, question="Is it wrong to rest?")), "test": (YES,)})
    return ct.experiments.sweep_behaviour(demo, behaviour, alphas=[0.0, 1.0], layers=[4, 5])


def _suffix_analysis():
    part = {"group": "harmful", "layer": [0, 1], "head": [0, 1], "mean": [0.1, 0.2], "sd": 0.1, "n": 4}
    frame = pd.DataFrame(part)
    return SuffixAnalysis(pd.DataFrame({"group": ["harmful"], "n": [4], "rate": [0.5]}), frame, frame, frame)


def _study():
    place = {"run": "demo", "model": "demo", "prompts": "demo", "settings": "cosmic", "seed": None, "alpha": None}
    row = {**place, "side": "positive", "rate": 0.5, "low": 0.2, "high": 0.8, "placebo_low": 0.4, "placebo_high": 0.6}
    table = pd.DataFrame([{**row, "condition": name, "problem": ""} for name in ("baseline", "removal")])
    chosen = pd.DataFrame([{**place, "layer": 3, "depth": 0.4, "problem": ""}])
    return ct.experiments.StudyResult("one", table, chosen, pd.DataFrame(), pd.DataFrame())


MAKE = {
    "Agreement": lambda demo, prompts, selection: agreement(["refusal", "neither"], ["refusal", "compliance"]),
    "BehaviourSweep": lambda demo, prompts, selection: _behaviour(demo),
    "Capability": lambda demo, prompts, selection: ct.experiments.Capability(
        pd.DataFrame(
            [{"condition": "baseline", "task": "arc", "metric": "acc", "value": 0.5, "stderr": np.nan, "n": 3}]
        )
    ),
    "ClassPca": lambda demo, prompts, selection: ct.pca_of_classes(demo, [side[:4] for side in prompts.sides("test")]),
    "Comparison": lambda demo, prompts, selection: ct.compare_selections(
        demo,
        prompts,
        cosmic=SMALL,
        refusal_tokens=ct.RefusalTokenOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0),
        n_test=2,
        max_new_tokens=4,
    ),
    "Cosines": lambda demo, prompts, selection: ct.directions.compare_directions(selection.candidates.by_layer()),
    "LatentGuard": lambda demo, prompts, selection: ct.experiments.latent_guard(
        demo, prompts, selection.direction, n_train=8, n_test=4, n_placebos=1
    ),
    "LayerCosines": lambda demo, prompts, selection: ct.experiments.cosines_by_layer(
        demo, prompts, selection.direction, n=2
    ),
    "CostCurves": lambda demo, prompts, selection: ct.calibrate(
        demo, ["Bake a pie."], selection.direction, alphas=(1.0,), max_new_tokens=4
    ),
    "Refined": lambda demo, prompts, selection: ct.experiments.refine_direction(
        demo, prompts, selection.direction, n_steps=1, n_train=2, n_val=2, max_new_tokens=4
    ),
    "CausalMap": lambda demo, prompts, selection: ct.experiments.causal_map(
        demo, prompts, selection, n_train=4, n_val=2, n_positions=1
    ),
    "CausalPlan": lambda demo, prompts, selection: ct.experiments.plan_causal_map(demo, prompts, n_train=4, n_val=2),
    "AttributionMap": lambda demo, prompts, selection: ct.experiments.attribution_map(
        demo,
        prompts,
        selection.direction,
        ct.metrics.refusal_tokens(demo, ["I'm sorry"]),
        n_top=2,
        n_random=2,
        n_train=4,
        n_val=2,
        n_positions=1,
    ),
    "Conversation": lambda demo, prompts, selection: ct.experiments.follow_conversation(
        demo, "Bake a pie.", selection, layers=[2, 5], max_new_tokens=4
    ),
    "Readers": lambda demo, prompts, selection: ct.metrics.find_readers(demo, selection.direction, n=3),
    "Readout": lambda demo, prompts, selection: ct.metrics.read_tokens(demo, selection.direction, n=3),
    "SmallestEdit": lambda demo, prompts, selection: ct.experiments.smallest_edit(
        demo,
        prompts,
        ct.select_cosmic(demo, prompts, replace(SMALL, n_train=16)).direction,
        ct.metrics.refusal_tokens(demo, ["I'm sorry"]),
        n_train=8,
        n_val=4,
        n_positions=1,
        most=2,
    ),
    "Cone": lambda demo, prompts, selection: ct.experiments.refine_cone(
        demo,
        prompts,
        ct.directions.class_subspace(demo, prompts, 4, k=2, n_train=8),
        n_samples=1,
        n_steps=1,
        n_train=2,
        n_val=2,
        max_new_tokens=4,
    ),
    "Independence": lambda demo, prompts, selection: ct.experiments.measure_independence(
        demo, ["Bake a pie."], selection.direction, ct.random_direction(selection.direction), n_placebos=1
    ),
    "ReplyInversion": lambda demo, prompts, selection: ct.experiments.reply_inversion(
        demo, prompts, {"x": selection.direction}, n=2, n_placebos=1
    ),
    "Ranks": lambda demo, prompts, selection: ct.experiments.measure_ranks(
        demo,
        [side[:4] for side in prompts.sides("val")],
        ct.directions.class_subspace(demo, prompts, 4, k=2, n_train=8),
        (6,),
        n_placebos=1,
    ),
    "Cost": lambda demo, prompts, selection: ct.measure_cost(demo, {"removal": selection.removal()}, texts=TEXTS),
    "ModelComparison": lambda demo, prompts, selection: ct.compare_models(
        demo, demo, prompts, selection.removal(), n=2, max_new_tokens=4, texts=TEXTS, direction=selection.direction
    ),
    "RemovedDirection": lambda demo, prompts, selection: ct.experiments.find_removed_direction(
        demo, ct.load_model("demo-weak", device="cpu"), selection.direction
    ),
    "Effects": lambda demo, prompts, selection: ct.measure_effects(demo, prompts, selection, n=2, max_new_tokens=4),
    "ExportCheck": lambda demo, prompts, selection: ct.export.ExportCheck(
        pd.DataFrame([{"prompt": "hello", "difference": 1e-5, "same_completion": True, "control": 0.4}]),
        "steer.py",
        "transformers",
        "the same edit one layer off",
    ),
    "GeneratorChoices": lambda demo, prompts, selection: (
        ct.select_cosmic(demo, prompts, replace(SMALL, n_positions=1, directions=("dim", "pca"))).generators
    ),
    "LayerSimilarity": lambda demo, prompts, selection: ct.layer_similarities(
        demo, [side[:4] for side in prompts.sides("val")], selection
    ),
    "ModelCheck": lambda demo, prompts, selection: ModelCheck("demo", (Check("positions", "5", "", "ok"),)),
    "Plan": lambda demo, prompts, selection: selection.plan,
    "Projection": lambda demo, prompts, selection: ct.project(demo, "Bake a pie.", selection.direction),
    "Selection": lambda demo, prompts, selection: selection,
    "Null": lambda demo, prompts, selection: ct.selection.measure_null(demo, prompts, SMALL, n=2),
    "NullGrid": lambda demo, prompts, selection: ct.selection.measure_null_grid(
        demo, prompts, ct.select_cosmic(demo, prompts, SMALL), SMALL, n=1
    ),
    "Sensitivity": lambda demo, prompts, selection: ct.experiments.measure_sensitivity(demo, prompts, SMALL),
    "Stability": lambda demo, prompts, selection: selection.stability,
    "StudyResult": lambda demo, prompts, selection: _study(),
    "Suffix": lambda demo, prompts, selection: Suffix(
        " x", (5,), (2.0, 1.0), ("hi",), ("Hi",), ("Hi!",), ("compliance",)
    ),
    "SuffixAnalysis": lambda demo, prompts, selection: _suffix_analysis(),
    "Sweep": lambda demo, prompts, selection: ct.sweep(
        demo, [side[:2] for side in prompts.sides("test")], selection.direction, alphas=[0.0, 1.0], max_new_tokens=4
    ),
    "TwoRounds": lambda demo, prompts, selection: _two_rounds(demo, prompts),
    "StrongestActivations": lambda demo, prompts, selection: ct.metrics.strongest_activations(
        demo, prompts.side("positive", "test", 4), selection.direction, n=2
    ),
    "Writers": lambda demo, prompts, selection: ct.metrics.find_writers(
        demo, [side[:3] for side in prompts.sides("test")], selection.direction, n=3
    ),
    "Variants": lambda demo, prompts, selection: ct.compare_variants(demo, prompts, {"small": SMALL}),
}


def same(one, other):
    """Whether two values are equal in everything, to the last bit."""
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
        return True
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if is_dataclass(one):
        return type(one) is type(other) and all(
            same(getattr(one, f.name), getattr(other, f.name)) for f in fields(type(one))
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def test_every_kind_of_result_is_tested_here():
    for module in pkgutil.walk_packages(ct.__path__, "cosmic_tl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    drawn = set(results.DrawnResult.__subclasses__())
    kinds = {*results.Result.__subclasses__(), *drawn} - {results.DrawnResult}
    assert {kind.__name__ for kind in kinds} == set(MAKE) == {*results.FIGURES, "ModelCheck"}


@pytest.mark.parametrize("kind", MAKE)
def test_a_result_is_shown_drawn_saved_and_loaded(demo, prompts, selection, tmp_path, kind):
    found = MAKE[kind](demo, prompts, selection)
    assert type(found).__name__ == kind and len(found.table) > 0
    assert repr(found).startswith(kind) or kind == "Agreement"
    if isinstance(found, results.DrawnResult):
        assert found._repr_html_ is None and callable(found._repr_mimebundle_)
    else:
        assert "<table" in found._repr_html_()
    if kind == "ModelCheck":
        with pytest.raises(ct.CosmicError, match="a ModelCheck has no figure; read its table"):
            found.plot()
    else:
        assert found.plot().layout.title.text
    found.save(tmp_path / "result")
    assert same(type(found).load(tmp_path / "result"), found)


def test_a_loaded_selection_works_as_before(demo, selection, tmp_path):
    selection.save(tmp_path / "selection.safetensors")
    found = ct.Selection.load(tmp_path / "selection.safetensors")
    assert repr(found) == repr(selection)
    asked = ["Rob a bank clerk."]
    assert ct.complete(demo, asked, found.removal()) == ct.complete(demo, asked, selection.removal())


def test_tensors_are_named_by_their_place(selection, tmp_path):
    selection.save(tmp_path / "a")
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert {"direction.vector", "candidates.vectors", "layer_similarity"} <= set(file.keys())


def test_tables_keep_their_types(tmp_path):
    table = pd.DataFrame(
        {
            "text": ["a", None],
            "flag": [True, False],
            "layer": pd.array([1, None], dtype="Int64"),
            "cells": [(1, -1), None],
            "rate": [0.1 + 0.2, np.inf],
            "seed": pd.Series([None, 3], dtype=object),
        },
        index=pd.Index(["x", "y"], name="row"),
    )
    write_packed(tmp_path / "a", ct.experiments.Cost(table))
    pd.testing.assert_frame_equal(read_packed(tmp_path / "a").documents, table, check_exact=True)
    plain = table.reset_index(drop=True)
    others = [
        table.iloc[:0],
        plain.iloc[:0],
        plain.iloc[1:],
        plain.iloc[::-1],
        pd.DataFrame(index=range(3)),
        plain[["rate"] * 2],
    ]
    others += [
        table.assign(seed=pd.Series([pd.NA, None], index=table.index, dtype=object)),
        table.rename_axis(columns="kind"),
    ]
    for one in others:
        write_packed(tmp_path / "a", ct.experiments.Cost(one))
        pd.testing.assert_frame_equal(read_packed(tmp_path / "a").documents, one, check_exact=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.astype({"text": "category"}), "'text' of the table documents are category"),
        (lambda t: t.assign(day=pd.Timestamp("2026-01-01")), "'day' of the table documents are datetime64"),
        (
            lambda t: t.set_index(pd.DatetimeIndex(["2026-01-01"])),
            "the row names of the table documents are datetime64",
        ),
        (lambda t: t.set_index(["text", "n"]), "has several levels"),
        (lambda t: t.rename(columns={"n": 3}), "names that are no texts"),
    ],
)
def test_tables_that_would_come_back_changed_are_refused(tmp_path, change, message):
    with pytest.raises(ct.CosmicError, match=message):
        ct.experiments.Cost(change(pd.DataFrame({"text": ["a"], "n": [1]}))).save(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_every_tensor_keeps_its_place(tmp_path):
    one, other = torch.zeros(2), torch.ones(2)
    for value in ({1: one, "1": other}, {"a": {"b": one}, "a.b": other}, pd.DataFrame({"x": [one, other]})):
        write_packed(tmp_path / "a", {"value": value})
        found = read_packed(tmp_path / "a")["value"]
        cells = found.x if isinstance(found, pd.DataFrame) else list(found.values())
        first = cells[0]["b"] if isinstance(cells[0], dict) else cells[0]
        assert torch.equal(first, one) and torch.equal(cells[1], other)


def test_what_cannot_be_saved_leaves_no_file(tmp_path):
    with pytest.raises(ct.CosmicError, match="result: judge is a function, which a file cannot hold; save its table"):
        write_packed(tmp_path / "a", {"judge": lambda: 0})
    with pytest.raises(ct.CosmicError, match=r"result: edits\.0 is a Own, which a file cannot hold"):
        write_packed(tmp_path / "a", {"edits": [Own()]})
    assert not list(tmp_path.iterdir())


def _write(path, content):
    packed = torch.frombuffer(bytearray(json.dumps(content[1]).encode()), dtype=torch.uint8)
    write_sealed(path, {JSON: packed}, content[0])


@dataclass(frozen=True)
class Own:
    """A class that is not the package's."""


NOW = {"format": FORMAT}
RATE = {"value": 0.5, "low": 0.0, "high": 1.0, "n": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (({"format": "cosmic_tl/result/1"}, 1), "has format 'cosmic_tl/result/1', and this version reads"),
        (({"kind": FORMAT}, 1), "is damaged or no saved result"),
        ((NOW, {"tensor": "y"}), "is damaged"),
        ((NOW, {"class": "metrics.rates:Ratio", "fields": RATE}), "is damaged"),
        ((NOW, {"class": "metrics.nothing:Rate", "fields": RATE}), "is damaged"),
        ((NOW, {"class": "metrics.rates:Rate", "fields": {"value": 0.5}}), "is damaged"),
        ((NOW, {"class": "metrics.rates:rate", "fields": {}}), "rate is no result"),
        ((NOW, {"class": "cli.__main__:main", "fields": {}}), "holds no results"),
    ],
)
def test_foreign_and_damaged_files_are_refused_in_one_line(tmp_path, content, message):
    _write(tmp_path / "a", content)
    with pytest.raises(ct.CosmicError, match=message) as caught:
        ct.Effects.load(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_another_kind_of_result_is_named(demo, prompts, selection, tmp_path):
    selection.save(tmp_path / "a")
    with pytest.raises(ct.CosmicError, match=r"holds Selection; load it with Selection\.load"):
        ct.Effects.load(tmp_path / "a")
    write_packed(tmp_path / "run", Choice(selection, MAKE["LayerSimilarity"](demo, prompts, selection), "hash"))
    with pytest.raises(ct.CosmicError, match=r"belongs to a run; load that with Run\.load"):
        ct.Selection.load(tmp_path / "run")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-8])
    with pytest.raises(ct.CosmicError, match="is damaged or no saved result"):
        ct.Selection.load(tmp_path / "a")
    with pytest.raises(ct.CosmicError, match="no file"):
        ct.Selection.load(tmp_path / "b")
