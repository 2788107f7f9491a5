"""Every default stands in one place, the library's, and the command line has the same."""

from dataclasses import fields
from inspect import signature

import pytest

from cosmic_tl import ChatFormat, CosmicOptions, RefusalTokenOptions, RunSettings, compare_selections
from cosmic_tl.cli.options import ChatOptions, SelectionOptions, Thinking
from cosmic_tl.cli.select import compare, two_rounds
from cosmic_tl.cli.select import run as run_command
from cosmic_tl.experiments.weak_alignment import two_rounds as both_rounds


def test_a_selection_asked_for_without_options_is_the_librarys():
    assert SelectionOptions().cosmic() == CosmicOptions()
    assert SelectionOptions().refusal_tokens() == RefusalTokenOptions()
    assert (RefusalTokenOptions().mode, RefusalTokenOptions().n_train, RefusalTokenOptions().n_val) == (
        "linear",
        128,
        32,
    )
    assert SelectionOptions().cosmic(exclude_first_half=True).exclude_first_half
    assert not SelectionOptions(exclude_first_half=False).cosmic(exclude_first_half=True).exclude_first_half


@pytest.mark.parametrize("group", [CosmicOptions, RefusalTokenOptions])
def test_every_setting_of_a_selection_is_an_option_of_the_command_line(group):
    named = {field.name for field in fields(SelectionOptions)}
    other_names = {"n_positions": "positions", "tokens": "refusal_token"}
    assert {other_names.get(field.name, field.name) for field in fields(group)} <= named


def test_chat_options_are_the_librarys():
    assert ChatOptions().format() == ChatFormat() and Thinking.close.value == ChatFormat().thinking


@pytest.mark.parametrize(
    ("command", "library"), [(run_command, RunSettings), (compare, compare_selections), (two_rounds, both_rounds)]
)
def test_options_of_commands_have_the_defaults_of_what_they_call(command, library):
    ours = {name: one.default for name, one in signature(command).parameters.items()}
    theirs = {name: one.default for name, one in signature(library).parameters.items()}
    renamed = {"n": "n_test"} if library is both_rounds else {"phrases": "phrase"}
    shared = {name: renamed.get(name, name) for name in theirs if renamed.get(name, name) in ours}
    assert {"max_new_tokens", "batch_size"} < set(shared)
    if library is both_rounds:
        assert tuple(map(float, ours["alphas"].split(","))) == theirs.pop("alphas") and shared.pop("alphas")
        assert ours["steer"].value == theirs.pop("steer") and shared.pop("steer")
    shared = {name: option for name, option in shared.items() if name not in ("model", "chat", "prompts", "selection")}
    assert {name: ours[option] for name, option in shared.items()} == {name: theirs[name] for name in shared}
