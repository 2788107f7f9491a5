"""A study is the runs that it asks for, no more and no less; what fails is said, and nothing is taken for what it is not."""

import gc
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from cosmic_tl import ChatFormat, CosmicError, CosmicOptions, RefusalTokenOptions, RunSettings, load_prompts, run
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.runs.lock import locked
from cosmic_tl.runs.run_files import RESULTS
from cosmic_tl.studies import PromptSet, SettingsEntry, Study, StudyModel, load_study, read_study, run_study
from cosmic_tl.studies.record import entry_of

FEW = {
    "selection": {"n_train": 8, "n_val": 4, "n_positions": 1, "max_kl": 10.0, "n_resamples": 20},
    "n_test": 2,
    "max_new_tokens": 4,
    "n_placebos": 1,
}
ROOT = Path(__file__).parents[2]
LOOSE = {"selection": {"max_kl": 1000.0, "n_resamples": 0}}
"""For random models."""
DEMO = PromptSet("demo", {"source": "demo"})
TWO = Study(
    "two",
    (StudyModel("demo", device="cpu"), StudyModel("demo-weak", "weak", device="cpu")),
    (DEMO,),
    (SettingsEntry("few", FEW),),
)
ONE = replace(TWO, models=TWO.models[:1])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished study, and what was said of its runs."""
    out, said, alive = tmp_path_factory.mktemp("study") / "two", [], []
    before = _alive()
    result = run_study(TWO, out, on_run=lambda one: (said.append(one), alive.append(_alive() - before)))
    return result, out, said, [*alive, _alive() - before]


def _alive():
    """How many models are in memory."""
    gc.collect()
    return sum(isinstance(one, TransformerBridge) for one in gc.get_objects())


@pytest.fixture
def copy(done, tmp_path):
    """Its directory, to change."""
    return Path(shutil.copytree(done[1], tmp_path / "two"))


def files(folder):
    return {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def _new(folder):
    folder.mkdir()
    return folder


def stamps(folder):
    return {name: path.stat().st_mtime_ns for name, path in files(folder).items()}


def test_each_run_is_the_same_as_run_alone(done, demo, prompts, tmp_path):
    result, out, *_ = done
    settings = RunSettings(
        CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0, n_resamples=20),
        n_test=2,
        max_new_tokens=4,
        n_placebos=1,
    )
    run(demo, prompts, tmp_path / "alone", settings)
    mine = out / "runs" / result.selections.folder[0]
    alone = files(tmp_path / "alone")
    assert files(mine).keys() == alone.keys()
    for name, path in files(mine).items():
        if name.name == "summary.json":
            found = [json.loads(one.read_text()) | {"seconds": 0} for one in (path, alone[name])]
            assert found[0] == found[1]
        elif name.name != "report.html":  # which has the seconds and the command
            assert path.read_bytes() == alone[name].read_bytes(), name


def test_the_tables_say_what_the_runs_found(done):
    result, out, said, _ = done
    assert [(one.number, one.total, one.name, one.problem, one.was_complete) for one in said] == [
        (1, 2, "demo, demo, few", "", False),
        (2, 2, "weak, demo, few", "", False),
    ]
    for outcome, (_, row) in zip(said, result.selections.iterrows(), strict=True):
        found, chosen = outcome.run, outcome.run.direction
        assert (row.layer, row.position, row.n_layers, row.d_model) == (chosen.layer, chosen.position, 8, 128)
        assert row.depth == chosen.layer / 8 and row.kl == found.selection.winner.kl
        assert row.stability == found.selection.stability.wins and row.seconds == found.summary["seconds"]
        assert 0.05 < row.memory_gb < 100 and (row.gpu_gb > 0) == torch.cuda.is_available()
        mine = result.table[result.table.run == row.run].set_index(["side", "condition"])
        for one in found.effects.table.itertuples():
            assert (
                mine.loc[(one.side, one.condition)][["rate", "low", "high", "n"]] == [one.rate, one.low, one.high, 2]
            ).all()
        placebos = (
            found.effects.by_seed().query("side == 'negative' and condition not in ['baseline', 'induction']").rate
        )
        assert len(placebos) >= 3
        beside = mine.loc[("negative", "induction")]
        assert (beside.placebo_low, beside.placebo_high) == (placebos.min(), placebos.max())
        assert mine.placebo_low.notna().sum() == 2 and mine.loc[("positive", "removal")].kl == row.kl
    assert result.scores.groupby("run").size().tolist() == [8, 8] and result.scores.chosen.sum() == 2
    assert pd.read_csv(out / "study.csv").rate.tolist() == result.table.rate.tolist()
    assert pd.read_csv(out / "selections.csv").folder.tolist() == result.selections.folder.tolist()
    loaded = load_study(out)
    for name in ("table", "selections", "scores", "published", "rates"):
        pd.testing.assert_frame_equal(getattr(loaded, name), getattr(result, name))
    assert "2 of 2 runs finished" in repr(result)


def test_what_is_finished_is_left_as_it_is_and_no_model_is_loaded_for_it(copy):
    before, said = stamps(copy / "runs"), []
    broken = replace(TWO, models=tuple(replace(one, device="no-such-device") for one in TWO.models))
    result = run_study(broken, copy, on_run=said.append)  # which would fail if anything were loaded
    assert [one.was_complete for one in said] == [True, True] and result.problems.empty
    assert stamps(copy / "runs") == before


def test_one_model_is_loaded_at_a_time_and_freed(done):
    assert done[3] == [1, 1, 0]


def test_one_broken_model_is_reported_and_the_others_finish(save_model, tmp_path, copy):
    folder = save_model(_new(tmp_path / "model"), "llama")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    study = replace(TWO, models=(StudyModel(str(folder), "broken", settings=LOOSE), *TWO.models))
    said = []
    result = run_study(study, copy, on_run=said.append)
    assert [(bool(one.problem), one.was_complete) for one in said] == [(True, False), (False, True), (False, True)]
    (problem,) = result.problems.itertuples()
    assert (
        problem.run == "broken" and problem.problem.startswith("model: could not load") and "\n" not in problem.problem
    )
    assert result.table[result.table.run == "broken"].problem.tolist() == [problem.problem]
    assert result.rates.run.tolist() == ["demo", "weak"] and problem.problem in (copy / "study.csv").read_text()
    page = (copy / "study.html").read_text()
    assert "1 of 3 runs are not there" in page and "could not load" in page
    weights.write_bytes(whole)
    said.clear()
    result = run_study(study, copy, on_run=said.append)
    assert [(one.problem, one.was_complete) for one in said] == [("", False), ("", True), ("", True)]
    assert result.problems.empty and result.selections.n_layers.tolist() == [3, 8, 8]


def test_one_run_that_fails_does_not_stop_its_model(copy):
    entries = (SettingsEntry("strict", {**FEW, "selection": {**FEW["selection"], "max_kl": 1e-12}}), *ONE.settings)
    result = run_study(replace(ONE, settings=entries), copy)
    assert result.problems.run.tolist() == ["demo, strict"] and "max_kl" in result.problems.problem[0]
    assert result.rates.run.tolist() == ["demo, few"]


def test_a_study_that_was_stopped_goes_on_in_the_middle_of_a_run(done, copy):
    def stop(outcome):
        raise KeyboardInterrupt

    half = copy / "runs" / done[0].selections.folder[1]
    for name in RESULTS:
        (half / name).unlink()
    kept = (half / "resume" / "completions.jsonl").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        run_study(TWO, copy, on_run=stop)
    found = load_study(copy)
    assert found.problems.problem.tolist() == ["not finished yet"] and found.rates.run.tolist() == ["demo"]
    before, said = stamps(copy / "runs"), []
    result = run_study(TWO, copy, on_run=said.append)
    assert [one.was_complete for one in said] == [True, False]
    assert stamps(copy / "runs").items() >= before.items()  # nothing was computed twice
    assert (half / "resume" / "completions.jsonl").read_bytes() == kept
    pd.testing.assert_frame_equal(result.table, done[0].table)


def test_a_changed_study_keeps_what_it_still_asks_for_and_names_what_it_no_longer_does(done, copy):
    first = done[0]
    before, said = stamps(copy / "runs"), []
    result = run_study(replace(ONE, alphas=(2,)), copy, on_run=said.append)
    assert [(one.name, one.was_complete) for one in said] == [("demo, demo, few, α 2", False)]
    assert result.others == tuple(sorted(first.selections.folder)) and result.others[0] in repr(result)
    assert stamps(copy / "runs").items() >= before.items()
    assert result.table[["alpha", "run"]].drop_duplicates().values.tolist() == [[2.0, "demo"]]
    assert all(name in (copy / "study.html").read_text() for name in result.others)
    said.clear()
    back = run_study(TWO, copy, on_run=said.append)
    assert [one.was_complete for one in said] == [True, True] and len(back.others) == 1
    assert back.selections.memory_gb.notna().all()


def test_the_folder_depends_on_everything_that_the_run_depends_on(tmp_path):
    prompts = load_prompts("demo")
    (case,) = ONE.cases
    folder = entry_of(case, prompts).folder
    assert folder.startswith("demo-demo-few-") and entry_of(case, prompts).folder == folder
    other = load_prompts({"positive": ["a", "b", "c"], "negative": ["d", "e", "f"]}, name="demo", labels=prompts.labels)
    assert entry_of(case, other).folder != folder
    for changed in (
        replace(case.model, dtype="bfloat16"),
        replace(case.model, model="demo-weak"),
        replace(case.model, revision="v2"),
    ):
        assert entry_of(replace(case, model=changed), prompts).folder != folder
    for changed in (replace(case.settings, seed=1), replace(case.settings, chat=ChatFormat(system="Be brief."))):
        assert entry_of(replace(case, settings=changed), prompts).folder != folder
    for changed in (replace(case.settings, batch_size=2),):  # on which no result depends
        assert entry_of(replace(case, settings=changed), prompts).folder == folder
    assert entry_of(replace(case, model=replace(case.model, device="cuda")), prompts).folder == folder


def test_other_weights_at_the_same_place_are_not_taken_for_the_old_ones(save_model, tmp_path):
    folder = save_model(_new(tmp_path / "a"), "llama")
    other = save_model(_new(tmp_path / "b"), "llama", intermediate_size=48)
    study = replace(ONE, models=(StudyModel(str(folder), "tiny", settings=LOOSE),))
    assert run_study(study, tmp_path / "out").problems.empty
    for name in ("model.safetensors", "config.json"):
        shutil.copy(other / name, folder / name)
    result = run_study(study, tmp_path / "out")
    assert "it is not the one that runs/tiny-demo-few-" in result.problems.problem[0]
    assert result.rates.empty


def test_another_chat_template_at_the_same_place_is_not_taken_for_the_old_one(save_model, tmp_path):
    folder = save_model(_new(tmp_path / "a"), "llama")
    study = replace(ONE, models=(StudyModel(str(folder), "tiny", settings=LOOSE),))
    assert run_study(study, tmp_path / "out").problems.empty
    template = folder / "chat_template.jinja"
    template.write_text("Today is Monday. " + template.read_text())
    result = run_study(study, tmp_path / "out")
    assert result.problems.problem[0].startswith(
        "model: its chat template, as it gives prompts today, is not the one that"
    )


def test_only_one_process_works_in_a_study(copy):
    before = stamps(copy)
    with locked(copy), pytest.raises(CosmicError, match="is in use by process"):
        run_study(TWO, copy)
    assert stamps(copy) == before


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CosmicError, match=r"holds something else \(notes.txt\)"):
        run_study(ONE, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_prompts_are_read_before_any_model(tmp_path):
    study = replace(ONE, prompts=(PromptSet("mine", {"source": str(tmp_path / "none.json")}),))
    with pytest.raises(CosmicError, match=r"prompts 'mine': prompts: .*none\.json"):
        run_study(study, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_run_is_reported_and_made_again(copy, done):
    folder = done[0].selections.folder[0]
    path = copy / "runs" / folder / "selection.safetensors"
    path.write_bytes(path.read_bytes()[:-9] + b"\0" * 9)
    assert "is damaged" in load_study(copy).problems.problem[0]
    result = run_study(TWO, copy)
    assert result.problems.empty
    pd.testing.assert_frame_equal(result.table, done[0].table)


RECIPES = {
    ("single-direction", "Llama-3 8B", 0): "llama",
    ("cosmic", "Gemma-2 9B", 0): "gemma2",
    ("cosmic", "Qwen2.5 7B", 1): "qwen2",
    ("ace", "Llama-3 70B", 0): "llama",
}
TINY = {
    **FEW,
    "selection": {**FEW["selection"], "max_kl": 1e4, "max_layer_share": 1.0, "n_resamples": 0, "tokens": ["I"]},
}


@pytest.mark.parametrize(("recipe", "name", "entry"), RECIPES)
def test_recipes_run_at_tiny_size(save_model, tmp_path, recipe, name, entry):
    folder = save_model(_new(tmp_path / "model"), RECIPES[recipe, name, entry])
    whole = read_study(ROOT / "studies" / f"{recipe}.yaml")
    # A random model does not refuse.
    random = {"filter_prompts": False, "min_induce": -1e4} if recipe == "single-direction" else {}
    values = {**TINY, "selection": TINY["selection"] | random}
    study = whole.with_models({name: str(folder)}).with_prompts("demo").with_settings(values)
    result = run_study(replace(study, settings=study.settings[entry : entry + 1]), tmp_path / "out")
    assert result.problems.empty and result.selections.dtype.tolist() == ["bfloat16"]
    asked = next(one for one in whole.models if one.name == name)
    assert result.published.measure.tolist() == [one.measure for one in asked.published]
    assert result.published.ours.notna().all()


def test_recipes_have_the_papers_settings():
    read = {path.stem: read_study(path) for path in (ROOT / "studies").glob("*.yaml")}
    assert {name: len(study.models) for name, study in read.items() if name != "demo"} == {
        "single-direction": 13,
        "cosmic": 6,
        "ace": 4,
    }
    arditi = RunSettings(RefusalTokenOptions(), n_test=100, max_new_tokens=512)
    assert all(case.settings == arditi for case in read["single-direction"].cases)
    for case in read["cosmic"].cases:
        assert case.settings == RunSettings(CosmicOptions(mode=case.entry), n_test=512, max_new_tokens=512)


def test_every_published_figure_says_where_it_stands():
    published = [
        one
        for path in (ROOT / "studies").glob("*.yaml")
        for model in read_study(path).models
        for one in model.published
    ]
    assert len(published) > 40
    for one in published:
        assert "@" in one.source or "Table" in one.source, one
        if one.measure.startswith(("positive_", "negative_")):
            assert 0 <= one.value <= 1
