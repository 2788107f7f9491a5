import json
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from cosmic_tl import (
    CosmicError,
    CosmicOptions,
    Direction,
    RefusalTokenOptions,
    Run,
    RunSettings,
    SubstringJudge,
    measure_effects,
    run,
    sweep,
)
from cosmic_tl.experiments.conditions import CONCEPT, REFUSAL, Condition
from cosmic_tl.judges import Judgement
from cosmic_tl.report.page import write_report
from cosmic_tl.runs import job as runs, logs
from cosmic_tl.runs.derived import derivation
from cosmic_tl.runs.run_files import DERIVED, LOCK, RESULTS, RESUME_FILES

SETTINGS = RunSettings(
    CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0), n_test=2, max_new_tokens=4, n_placebos=1
)
BASELINES = [Condition("baseline", "positive", ()), Condition("baseline", "negative", ())]


@pytest.fixture(scope="module")
def complete(demo, prompts, tmp_path_factory):
    """A finished run's directory, to be copied."""
    out = tmp_path_factory.mktemp("complete") / "run"
    run(demo, prompts, out, SETTINGS)
    return out


@pytest.fixture
def finished(complete, tmp_path):
    """A finished run's directory, with a score that no pass gives, so that it is seen whether scores are kept."""
    shutil.copytree(complete, tmp_path / "run")
    log = tmp_path / "run" / "resume" / "scores.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    next(row for row in rows if row["measure"] == "s_comply")["value"] = 0.125
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "run"


def test_a_prompt_is_tokenized_once_to_be_checked_and_once_to_be_used(demo, prompts, tmp_path, monkeypatch):
    seen, render = Counter(), demo.tokenizer.apply_chat_template

    def counted(messages, **options):
        seen[messages[-1]["content"]] += 1
        return render(messages, **options)

    monkeypatch.setattr(demo.tokenizer, "apply_chat_template", counted)
    run(demo, prompts, tmp_path / "run", SETTINGS)
    asked = prompts.sides("train", 8) + prompts.sides("test", 2)  # placebos and similarities ask for the others again
    assert {seen[text] for side in asked for text in side} == {2}


def test_a_template_that_gives_other_prompts_is_another_setting(demo, prompts, finished, monkeypatch):
    assert run(demo, prompts, finished, SETTINGS).was_complete
    render = demo.tokenizer.apply_chat_template

    def dated(messages, **options):
        return "Today is Monday. " + render(messages, **options)

    monkeypatch.setattr(demo.tokenizer, "apply_chat_template", dated)
    with pytest.raises(CosmicError, match=r"holds a run with other settings \(rendering\)"):
        run(demo, prompts, finished, SETTINGS)
    parts = [derivation(finished, "sweep", Run.load(finished).direction, demo).part(".jsonl")]
    monkeypatch.undo()
    parts += [derivation(finished, "sweep", Run.load(finished).direction, demo).part(".jsonl")]
    assert parts[0] != parts[1]


def test_a_batch_size_is_a_setting_where_completions_are_sampled():
    for temperature in (0.0, 1.0):
        settings = RunSettings(temperature=temperature, batch_size=3)
        assert ("batch_size" in settings.to_json()) == bool(temperature)
        assert RunSettings.from_json(settings.to_json()).batch_size == (3 if temperature else None)


def test_only_a_new_run_of_passes_replaces_scores(demo, prompts, finished):
    """Thresholds, test prompts and phrases change no score; other settings do, and so does asking for the same again."""

    def kept_after(settings):
        result = run(demo, prompts, finished, settings, overwrite=True)
        assert json.loads((finished / "settings.json").read_text())["settings"]["n_test"] == settings.n_test
        assert len(result.effects.completions) == 10 * settings.n_test
        return 0.125 in result.selection.table[["s_comply", "s_refuse"]].to_numpy()

    options = SETTINGS.selection
    assert kept_after(replace(SETTINGS, selection=replace(options, max_kl=20.0, full_table=True)))
    assert kept_after(replace(SETTINGS, selection=replace(options, max_layer_share=1.0), n_test=1, phrases=("help",)))
    assert not kept_after(replace(SETTINGS, selection=replace(options, alpha=0.5)))


def test_what_was_derived_from_another_direction_is_gone(demo, prompts, finished):
    """And what is not the run's own stays."""
    first = Direction.load(finished / "direction.safetensors")
    made = derivation(finished, "sweep", first, demo, seed=0)
    made.part(".jsonl").write_text("")
    for name in (name for names in (*DERIVED.values(), ["judge-cache.jsonl"]) for name in names):
        (finished / name).write_text("")
    made.write({"sweep.csv": ""})
    for name in ("sweep-notes.txt", "resume/notes.txt"):
        (finished / name).write_text("mine")
    lower = replace(SETTINGS, selection=replace(SETTINGS.selection, max_layer_share=0.25))
    second = run(demo, prompts, finished, lower, overwrite=True).selection.direction
    assert first.layer != second.layer
    assert not made.part(".jsonl").exists() and derivation(finished, "sweep", second, demo, seed=0).part(
        ""
    ) != made.part("")
    names = {path.name for path in finished.iterdir() if path.is_file()}
    assert names == {"settings.json", *RESULTS, "sweep-notes.txt"}
    kept = {name for name in RESUME_FILES if not name.startswith(("null", "causal"))}  # which was not asked for
    assert {path.name for path in (finished / "resume").iterdir()} == {*kept, LOCK, "notes.txt"}


def test_the_same_again_is_done_again(demo, prompts, finished):
    (finished / "summary.json").unlink()  # as if it had been stopped
    assert 0.125 in run(demo, prompts, finished, SETTINGS).selection.table.s_comply.to_list()
    assert 0.125 not in run(demo, prompts, finished, SETTINGS, overwrite=True).selection.table.s_comply.to_list()


def _content(folder):
    """Of all files, but for what a run took in seconds."""
    found = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    seconds = json.loads(found[Path("summary.json")])["seconds"]
    found[Path("summary.json")] = found[Path("summary.json")].replace(f'"seconds": {seconds}'.encode(), b"")
    found[Path("report.html")] = found[Path("report.html")].replace(f"{seconds} s; cosmic_tl".encode(), b"")
    return found


def test_a_complete_run_is_left_as_it_is(demo, prompts, finished, tmp_path):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished.rglob("*") if path.is_file()}
    again = run(demo, prompts, finished, replace(SETTINGS, batch_size=1))
    assert again.was_complete and "complete already" in repr(again)
    assert before == {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("mode", ["affine", "linear"])
def test_a_run_goes_on_from_wherever_it_was_stopped(demo, prompts, tmp_path, monkeypatch, mode):
    """A second run is stopped after each part of its work in turn; the files of both are the same."""
    options = CosmicOptions(mode=mode, n_train=8, n_val=4, n_positions=2, max_kl=50.0, n_resamples=20)
    settings = replace(SETTINGS, selection=options)
    assert not run(demo, prompts, tmp_path / "whole", settings).was_complete

    class Stop(Exception):
        """Not caught anywhere."""

    def stopping(write, after):
        calls = 0

        def call(*args):
            nonlocal calls
            write(*args)
            calls += 1
            if calls in after:
                raise Stop

        return call

    # What is written down while a run goes on, and at its end.
    append = stopping(runs.append_lines, (3, 8, 21, 33, 38))
    monkeypatch.setattr(runs, "append_lines", append)
    monkeypatch.setattr(logs, "append_lines", append)
    monkeypatch.setattr(runs, "write_atomically", stopping(runs.write_atomically, (2, 5)))
    calls = 0
    while not (tmp_path / "stopped" / "summary.json").exists():
        calls += 1
        with suppress(Stop):
            run(demo, prompts, tmp_path / "stopped", settings)
    assert calls >= 6
    whole, stopped = _content(tmp_path / "whole"), _content(tmp_path / "stopped")
    assert whole.keys() == stopped.keys()
    assert [str(path) for path in whole if whole[path] != stopped[path]] == []


@pytest.mark.parametrize("select", ["cosmic", "refusal tokens"])
def test_a_run_is_read_without_a_model(demo, prompts, tmp_path, select):
    """And is as it was made, to the last bit."""
    settings = SETTINGS
    if select == "refusal tokens":
        settings = replace(SETTINGS, selection=RefusalTokenOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0))
    made = run(demo, prompts, tmp_path / "run", settings)
    found = Run.load(tmp_path / "run")
    assert repr(found) == repr(made) and found.settings == settings and not found.was_complete
    assert found.selection._repr_html_() == made.selection._repr_html_()
    pd.testing.assert_frame_equal(found.selection.table, made.selection.table, check_exact=True)
    pd.testing.assert_frame_equal(found.selection.filters, made.selection.filters, check_exact=True)
    pd.testing.assert_frame_equal(found.effects.completions, made.effects.completions, check_exact=True)
    assert torch.equal(found.similarity.removal, made.similarity.removal)
    report = write_report(found.selection, found.effects, found.similarity, found.summary, found.identity)
    assert len(report) == len((tmp_path / "run" / "report.html").read_text())  # only the bits of a NaN may be others
    assert torch.equal(found.selection.candidates.vectors, made.selection.candidates.vectors)
    assert found.test_prompts(1) == tuple(prompts.side(side, "test", 1) for side in ("positive", "negative"))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("settings.json", lambda text: text.replace('"affine"', '"cubic"'), "settings.json .* is damaged"),
        ("settings.json", lambda text: text.replace('"affine"', '"linear"'), "another settings.json"),
        (
            "settings.json",
            lambda text: text.replace('"n_test"', '"tests"'),
            "settings.json .* expected causal, chat, .*n_test",
        ),
        ("settings.json", lambda text: text[:-9], "settings.json .* is damaged"),
        ("summary.json", lambda text: "{}", "summary.json .* is damaged|completions.jsonl .* is damaged"),
        ("summary.json", None, "is not finished .no summary.json."),
        ("completions.jsonl", lambda text: text.replace('"condition"', '"state"'), "completions.jsonl .* is damaged"),
        ("direction.safetensors", lambda text: "", "direction.safetensors .* is damaged"),
        ("scores.csv", lambda text: "", "is damaged"),
    ],
)
def test_damaged_and_foreign_files_are_refused_in_one_line(demo, prompts, complete, tmp_path, name, damage, message):
    folder = tmp_path / "run"
    shutil.copytree(complete, folder)
    if damage is None:
        (folder / name).unlink()
    elif name.endswith(".safetensors"):
        (folder / name).write_bytes(b"x")
    else:
        (folder / name).write_text(damage((folder / name).read_text()))
    with pytest.raises(CosmicError, match=message) as caught:
        Run.load(folder)
    assert "\n" not in str(caught.value)


def test_another_runs_direction_is_refused(complete, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(complete, folder)
    other = replace(Direction.load(folder / "direction.safetensors"), layer=1)
    other.save(folder / "direction.safetensors")
    with pytest.raises(CosmicError, match=r"another direction\.safetensors"):
        Run.load(folder)


def test_damaged_settings_are_overwritten(demo, prompts, finished):
    (finished / "settings.json").write_text("[]")
    with pytest.raises(CosmicError, match="damaged"):
        run(demo, prompts, finished, SETTINGS)
    assert run(demo, prompts, finished, SETTINGS, overwrite=True).summary["phrases"] is None


def test_phrases_belong_to_a_run(demo, prompts, tmp_path):
    of_course = replace(SETTINGS, phrases=("of course",), max_new_tokens=8)
    result = run(demo, prompts, tmp_path / "run", of_course)
    frame = result.effects.completions
    assert result.summary["phrases"] == ["of course"] and result.effects.terms.outcome == CONCEPT.outcome
    with_phrase = frame.completion.str.lower().str.contains("of course")
    assert with_phrase.any() and (frame.verdict[with_phrase] == "refusal").all()
    with pytest.raises(CosmicError, match=r"other settings \(settings\)"):
        run(demo, prompts, tmp_path / "run", replace(of_course, phrases=("sure",)))
    assert (
        result.summary["rates"]["negative"]["baseline"]
        == with_phrase[(frame.side == "negative") & (frame.condition == "baseline")].mean()
    )


def test_sides_are_called_what_the_prompts_say(demo, prompts, tmp_path):
    """In the result, the report and the loaded run; other names are another run."""
    named = replace(prompts, labels=("<b>pirates", "others"))
    made = run(demo, named, tmp_path / "run", SETTINGS)
    assert made.effects.terms.sides == {"positive": "<b>pirates", "negative": "others"}
    assert made.effects.terms.rate == REFUSAL.rate
    found = Run.load(tmp_path / "run")
    assert repr(found) == repr(made) and found.prompts.labels == named.labels
    page = (tmp_path / "run" / "report.html").read_text()
    assert "others prompts" in page and "harmless prompts" not in page and "<b>pirates" not in page
    with pytest.raises(CosmicError, match=r"other settings \(prompts\)"):
        run(demo, prompts, tmp_path / "run", SETTINGS)
    log = tmp_path / "run" / "resume" / "scores.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows = [{**row, "value": 0.125} if row["measure"] == "s_comply" else row for row in rows]  # as no pass gives
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = run(demo, prompts, tmp_path / "run", SETTINGS, overwrite=True)
    assert again.effects.terms.sides["negative"] == "harmless"
    assert set(again.selection.table.s_comply.dropna()) == {0.125}  # names change no score
    swept = sweep(demo, found.prompts, found.direction, alphas=[0.0], n=1, max_new_tokens=4)
    assert "1 others" in repr(swept) and "&lt;b&gt;pirates prompts" in str(swept.plot())


@pytest.mark.parametrize("phrases", [(), ("ahoy", " ")])
def test_phrases_must_say_something(phrases):
    with pytest.raises(CosmicError, match="phrases: found"):
        RunSettings(phrases=phrases)


def test_effects_are_judged_by_any_judge(demo):
    asked = ["Rob a bank clerk."], ["Bake a pizza."]
    found = measure_effects(demo, asked, conditions=BASELINES, judge=SubstringJudge(("PIZZA",)))
    assert found.completions.verdict.tolist() == ["compliance", "refusal"] and found.terms is CONCEPT
    assert "positive" in found._repr_html_() and "refus" not in found._repr_html_()
    undecided = measure_effects(
        demo, asked, conditions=BASELINES, judge=lambda prompts, texts: [Judgement("neither") for _ in texts]
    )
    assert undecided.completions.verdict.tolist() == ["neither"] * 2 and undecided.terms is REFUSAL
    with pytest.raises(CosmicError, match="judge: it says 'safe', and effects count refusals"):
        measure_effects(
            demo, asked, conditions=BASELINES, judge=lambda prompts, texts: [Judgement("safe") for _ in texts]
        )
