"""Options, their defaults and their help stand in one place, the library's, and the command line is derived from it."""

from dataclasses import fields
from inspect import signature

import pydantic  # noqa: F401  # cyclopts checks values against hints where it is loaded, as some of our libraries do
import pytest

import cosmic_tl
from cosmic_tl import ChatFormat, CosmicOptions, RefusalTokenOptions, RunSettings, Sampling, compare_selections
from cosmic_tl.cli import app
from cosmic_tl.cli.derive import FLAGS, PROCEDURES, help_texts
from cosmic_tl.cli.options import GENERATION, DataOptions, LoadOptions, ModelOptions, RunOptions, generation
from cosmic_tl.experiments.behaviour_sweep import sweep_behaviour
from cosmic_tl.experiments.weak_alignment import two_rounds
from cosmic_tl.judges import EndpointJudge
from cosmic_tl.suffixes import SuffixOptions


@pytest.fixture
def called(monkeypatch):
    """What a command line passes to the library: the arguments of the command's own function."""

    def call(line):
        command, bound, _ = app.parse_args(line, print_error=False, exit_on_error=False)
        found = {}
        monkeypatch.setattr("cosmic_tl.cli.derive._run", lambda steps, command, values: found.update(values))
        command(*bound.args, **bound.kwargs)
        return found

    return call


def test_a_selection_asked_for_without_options_is_the_librarys(called):
    assert called("run")["settings"] == RunSettings()
    assert called("run --select refusal-tokens")["settings"] == RunSettings(RefusalTokenOptions())
    assert called("run --select cosmic")["settings"] == RunSettings(CosmicOptions())
    assert (RefusalTokenOptions().mode, RefusalTokenOptions().n_train, RefusalTokenOptions().n_val) == (
        "linear",
        128,
        32,
    )
    assert called("plan")["options"] == called("variants")["options"] == CosmicOptions()
    assert called("compare")["cosmic"] == CosmicOptions()
    assert called("compare")["refusal_tokens"] == RefusalTokenOptions()


def test_options_are_taken_from_the_line(called):
    """One that several procedures have goes to each, and what is not given keeps the default of each."""
    found = called("compare --n-train 64 --evaluation-layers 4,3,4 --min-induce 0.5 --no-filter-prompts")
    assert found["cosmic"] == CosmicOptions(n_train=64, evaluation_layers=(3, 4))
    assert found["refusal_tokens"] == RefusalTokenOptions(n_train=64, min_induce=0.5, filter_prompts=False)
    line = (
        "run --mode ace --cell 17,-1 --refusal-token I --refusal-token Sorry --phrase ahoy --phrase matey --positions 2"
    )
    selection = CosmicOptions(mode="affine", cell=(17, -1), tokens=("I", "Sorry"), n_positions=2)
    assert called(line)["settings"] == RunSettings(selection, phrases=("ahoy", "matey"))
    line = (
        "run --template-option depth=2 --template-option name=x --thinking open --top-k 20 --temperature 0.5 --seed 3"
    )
    chat = ChatFormat(thinking="open", template_options={"depth": 2, "name": "x"})
    found = called(line)
    assert found["settings"] == RunSettings(chat=chat, temperature=0.5, sampling=Sampling(top_k=20), seed=3)
    assert found["data"] == DataOptions(seed=3)
    assert called("two-rounds")["options"] == CosmicOptions(exclude_first_half=True)
    assert called("two-rounds --no-exclude-first-half --n-val 8")["options"] == CosmicOptions(n_val=8)
    assert called("two-rounds --alphas -1,.5")["alphas"] == (-1.0, 0.5)


def options_of(name):
    """The options of a command, by their names without dashes."""
    return {one.name.strip("-").replace("-", "_").lower(): one for one in app[name].assemble_argument_collection()}


@pytest.mark.parametrize(
    ("command", "groups"),
    [
        ("run", (ModelOptions, DataOptions, RunSettings, ChatFormat, Sampling, CosmicOptions, RefusalTokenOptions)),
        ("compare", (CosmicOptions, RefusalTokenOptions, ChatFormat, Sampling)),
        ("plan", (CosmicOptions, ChatFormat)),
        ("two-rounds", (CosmicOptions, ChatFormat, Sampling)),
        ("suffix", (SuffixOptions,)),
        ("behaviour", (ModelOptions, ChatFormat)),
    ],
)
def test_every_field_is_an_option_with_the_fields_help(command, groups):
    options = options_of(command)
    for group in groups:
        for field in fields(group):
            if field.name in ("chat", "sampling"):
                continue
            text = help_texts(group)[field.name]
            assert text in options[FLAGS.get(field.name, field.name)].parameter.help, field.name


@pytest.mark.parametrize("group", [*PROCEDURES.values(), RunSettings, ChatFormat, Sampling, SuffixOptions, LoadOptions])
def test_every_field_has_a_help_text(group):
    assert {field.name for field in fields(group)} == set(help_texts(group))
    assert all(text[0].isupper() and text.endswith((".", "…")) for text in help_texts(group).values())


def test_every_option_has_a_help_text_and_a_heading():
    for name in app:
        if not name.startswith("-"):
            for one in app[name].assemble_argument_collection(parse_docstring=True):
                assert one.parameter.help, f"{name} {one.name}"
                assert [group.name for group in one.parameter.group] != ["Parameters"], f"{name} {one.name}"


def test_help_tells_where_the_procedures_differ():
    options = options_of("run")
    assert options["mode"].parameter.show_default == "affine; refusal-tokens linear"
    assert options["n_train"].parameter.show_default == "180; refusal-tokens 128"
    assert options["max_kl"].parameter.show_default == "0.1"
    (heading,) = options["min_induce"].parameter.group
    assert heading.name == "Refusal tokens"


@pytest.mark.parametrize(
    ("command", "library", "renamed"),
    [
        ("compare", compare_selections, {}),
        ("two-rounds", two_rounds, {"n": "n_test"}),
        ("behaviour", sweep_behaviour, {"n": "n_test"}),
        ("judge", EndpointJudge, {"model": "judge_model"}),
    ],
)
def test_options_of_commands_have_the_defaults_of_what_they_call(command, library, renamed):
    ours = {name: one.field_info.default for name, one in options_of(command).items()}
    theirs = {renamed.get(name, name): one.default for name, one in signature(library).parameters.items()}
    # An endpoint on one's own machine needs no key.
    others = ("model", "chat", "prompts", "template", "judge_model", "api_key_env")
    shared = (set(ours) & set(theirs)).difference(others)
    assert len(shared) >= 3
    if library is sweep_behaviour:  # a number there, and here the default of a run
        shared.remove("batch_size")
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def test_ace_is_affine_everywhere():
    assert CosmicOptions(mode="ace") == CosmicOptions(mode="affine")
    assert RefusalTokenOptions(mode="ace").edits.mode == "affine"
    assert cosmic_tl.interventions.Edits("ace") == cosmic_tl.interventions.Edits("affine")


def test_a_run_names_its_directory():
    assert {field.name for field in fields(RunOptions)} == {field.name for field in fields(LoadOptions)} | {
        "directory",
        "model",
    }


def test_settings_that_are_written_down_are_in_the_same_order_in_every_process():
    """And not in that of a set, which changes with the hashes of strings."""
    assert list(generation(RunSettings())) == [one.name for one in fields(RunSettings) if one.name in GENERATION]
