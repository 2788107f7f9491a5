import json
from dataclasses import replace

import pytest

from cosmic_tl import (
    CosmicError,
    CosmicOptions,
    Direction,
    Judgement,
    RunSettings,
    SubstringJudge,
    measure_effects,
    run,
)
from cosmic_tl.evaluation.effects import CONCEPT, REFUSAL, Condition
from cosmic_tl.run_directory import DERIVED, RESULTS, RESUME_FILES, derivation

SETTINGS = RunSettings(
    CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0), n_test=2, max_new_tokens=4, n_placebos=1
)
BASELINES = [Condition("baseline", "harmful", ()), Condition("baseline", "harmless", ())]


@pytest.fixture
def finished(demo, prompts, tmp_path):
    """A finished run's directory, with a score that no pass gives, so that it is seen whether scores are kept."""
    run(demo, prompts, tmp_path / "run", SETTINGS)
    log = tmp_path / "run" / "resume" / "scores.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows[0]["value"] = 0.125
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "run"


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
    assert {path.name for path in (finished / "resume").iterdir()} == {*RESUME_FILES, "notes.txt"}


def test_the_same_again_is_done_again(demo, prompts, finished):
    assert 0.125 in run(demo, prompts, finished, SETTINGS).selection.table.s_comply.to_list()
    assert 0.125 not in run(demo, prompts, finished, SETTINGS, overwrite=True).selection.table.s_comply.to_list()


def test_damaged_settings_are_overwritten(demo, prompts, finished):
    (finished / "settings.json").write_text("[]")
    with pytest.raises(CosmicError, match="damaged"):
        run(demo, prompts, finished, SETTINGS)
    assert run(demo, prompts, finished, SETTINGS, overwrite=True).summary["phrases"] is None


def test_phrases_belong_to_a_run(demo, prompts, tmp_path):
    of_course = replace(SETTINGS, phrases=("of course",), max_new_tokens=8)
    result = run(demo, prompts, tmp_path / "run", of_course)
    frame = result.effects.completions
    assert result.summary["phrases"] == ["of course"] and result.effects.terms is CONCEPT
    with_phrase = frame.completion.str.lower().str.contains("of course")
    assert with_phrase.any() and (frame.verdict[with_phrase] == "refusal").all()
    with pytest.raises(CosmicError, match=r"other settings \(settings\)"):
        run(demo, prompts, tmp_path / "run", replace(of_course, phrases=("sure",)))
    assert (
        result.summary["rates"]["harmless"]["baseline"]
        == with_phrase[(frame.kind == "harmless") & (frame.condition == "baseline")].mean()
    )


@pytest.mark.parametrize("phrases", [(), ("ahoy", " ")])
def test_phrases_must_say_something(phrases):
    with pytest.raises(CosmicError, match="phrases: found"):
        RunSettings(phrases=phrases)


def test_effects_are_judged_by_any_judge(demo):
    asked = ["Rob a bank clerk."], ["Bake a pizza."]
    found = measure_effects(demo, *asked, BASELINES, judge=SubstringJudge(("PIZZA",)))
    assert found.completions.verdict.tolist() == ["compliance", "refusal"] and found.terms is CONCEPT
    assert "positive" in found._repr_html_() and "refus" not in found._repr_html_()
    undecided = measure_effects(
        demo, *asked, BASELINES, judge=lambda prompts, texts: [Judgement("neither") for _ in texts]
    )
    assert undecided.completions.verdict.tolist() == ["neither"] * 2 and undecided.terms is REFUSAL
    with pytest.raises(CosmicError, match="judge: it says 'safe', and effects count refusals"):
        measure_effects(demo, *asked, BASELINES, judge=lambda prompts, texts: [Judgement("safe") for _ in texts])
