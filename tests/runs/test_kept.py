"""What commands without a run keep: a stopped one goes on to the same result, and nothing is taken for another setting's."""

from contextlib import suppress
from dataclasses import replace

import pandas as pd
import pytest

from cosmic_tl import ChatFormat, CosmicError, CosmicOptions
from cosmic_tl.experiments import compare_training_folds, measure_sensitivity
from cosmic_tl.runs.kept import kept_scores

OPTIONS = CosmicOptions(n_train=16, n_val=4, n_positions=2, max_kl=0.5, n_resamples=50)


def _folds(model, prompts, options, keep=None):
    return compare_training_folds(model, prompts, options, n_folds=2, keep=keep)


class Stopped(Exception):
    pass


@pytest.mark.parametrize(("command", "work"), [("sensitivity", measure_sensitivity), ("variants", _folds)])
def test_a_stopped_command_goes_on_to_the_same_table(demo, prompts, tmp_path, command, work):
    undisturbed = work(demo, prompts, OPTIONS).table

    def lines():
        return sum(path.read_text().count("\n") for path in (tmp_path / "resume").glob("scores-*"))

    for number, stop in enumerate((3, 20, None)):
        before = lines() if number else 0
        with kept_scores(tmp_path, command, demo) as keep, suppress(Stopped):

            def until(some, options, keep=keep, left=None if stop is None else [stop]):
                scores, products = keep(some, options)
                write = type(scores).__setitem__

                class Limited(type(scores)):
                    def __setitem__(self, key, value):
                        if left is not None:
                            if not left[0]:
                                raise Stopped
                            left[0] -= 1
                        write(self, key, value)

                scores.__class__ = Limited
                return scores, products

            found = work(demo, prompts, OPTIONS, keep=until).table
        if stop is not None:
            assert lines() == before + stop
    pd.testing.assert_frame_equal(found, undisturbed, check_exact=True)
    before = lines()
    with kept_scores(tmp_path, command, demo) as keep:  # nothing is left to do
        pd.testing.assert_frame_equal(work(demo, prompts, OPTIONS, keep=keep).table, undisturbed, check_exact=True)
    assert lines() == before


def test_every_other_setting_has_files_of_its_own(demo, prompts, tmp_path):
    fewer = replace(prompts, positive={**prompts.positive, "val": prompts.positive["val"][1:]})
    cases = [
        ("sensitivity", None, prompts, OPTIONS),
        ("variants", None, prompts, OPTIONS),
        ("sensitivity", ChatFormat(prefix="Sure"), prompts, OPTIONS),
        ("sensitivity", None, fewer, OPTIONS),
        ("sensitivity", None, prompts, replace(OPTIONS, target="centred")),
        ("sensitivity", None, prompts, replace(OPTIONS, alpha=2.0)),
    ]
    for number, (command, chat, some, options) in enumerate(cases):
        with kept_scores(tmp_path, command, demo, chat) as keep:
            scores, _ = keep(some, options)
            assert not scores, number
            scores[0, -1, "kl"] = float(number)
    with kept_scores(tmp_path, "sensitivity", demo) as keep:
        assert keep(prompts, OPTIONS)[0] == {(0, -1, "kl"): 0.0}


def test_a_directory_of_something_else_is_left_alone(demo, tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(CosmicError, match=r"^resume: .* holds something else"), kept_scores(tmp_path, "variants", demo):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    with kept_scores(None, "variants", demo) as keep:
        assert keep is None


def test_one_process_at_a_time(demo, tmp_path):
    folder = tmp_path / "kept"
    with (
        kept_scores(folder, "variants", demo),
        pytest.raises(CosmicError, match=r"is in use by process"),
        kept_scores(folder, "sensitivity", demo),
    ):
        pass
