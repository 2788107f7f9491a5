"""Logs that were edited or damaged are named, and nothing is made of them."""

import json
import shutil

import pytest

from cosmic_tl import CosmicError, CosmicOptions, RunSettings, run

SETTINGS = RunSettings(
    CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0), n_test=2, max_new_tokens=2, n_placebos=1
)
SCORES, COMPLETIONS, PLACEBOS = "scores.jsonl", "completions.jsonl", "placebos.jsonl"


@pytest.fixture(scope="module")
def complete(demo, prompts, tmp_path_factory):
    return run(demo, prompts, tmp_path_factory.mktemp("logs") / "run", SETTINGS).out


def without(name):
    def change(row):
        del row["rows"][0][name]

    return change


def other_prompt(row):
    row["rows"][0]["prompt"] += " now"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            SCORES,
            lambda row: row.pop("value"),
            r"scores\.jsonl' has a line that was not written here \('value'\); delete",
        ),
        (
            SCORES,
            lambda row: row.update(value="high"),
            r"scores\.jsonl' has a line that was not written here .*'high'",
        ),
        (SCORES, lambda row: row.update(layer=3.7), r"scores\.jsonl' has a line that was not written here .*3\.7"),
        (SCORES, lambda row: row.update(position=True), r"scores\.jsonl' has a line that was not written here .*True"),
        (SCORES, lambda row: row.update(layer=None), r"scores\.jsonl' has a line that was not written here"),
        (PLACEBOS, lambda row: row.update(mood="good"), r"placebos\.jsonl' has a line that was not written here"),
        (
            COMPLETIONS,
            lambda row: row.pop("rows"),
            r"completions\.jsonl' has a line that was not written here \('rows'\)",
        ),
        (COMPLETIONS, lambda row: row["rows"].append(7), r"completions\.jsonl' has a line that was not written here"),
        (COMPLETIONS, without("verdict"), "known: found a row that is no answer"),
        (COMPLETIONS, without("prompt"), "known: found a row that is no answer"),
        (COMPLETIONS, lambda row: row["rows"][0].update(side="harmful"), "known: found a row that is no answer"),
        (
            COMPLETIONS,
            lambda row: row["rows"].append(row["rows"][0]),
            "known: positive, baseline takes one row .* 2 in all; found 3 that",
        ),
        (
            COMPLETIONS,
            lambda row: row["rows"].pop(),
            "known: positive, baseline takes one row .* 2 in all; found 1 that",
        ),
        (COMPLETIONS, other_prompt, "known: positive, baseline takes one row .* 2 in all; found 2 that"),
    ],
)
def test_a_damaged_log_is_named(demo, prompts, complete, tmp_path, name, change, message):
    out = tmp_path / "run"
    shutil.copytree(complete, out)
    (out / "summary.json").unlink()  # so that it goes on from its logs
    log = out / "resume" / name
    first, *rest = log.read_text().splitlines(keepends=True)
    row = json.loads(first)
    change(row)
    log.write_text("".join([json.dumps(row) + "\n", *rest]))
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    with pytest.raises(CosmicError, match=message):
        run(demo, prompts, out, SETTINGS)
    assert {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()} == before


def test_conditions_that_are_there_twice_are_refused(demo, prompts, complete, tmp_path):
    """As two runs at once in one directory would have left them."""
    out = tmp_path / "run"
    shutil.copytree(complete, out)
    (out / "summary.json").unlink()
    log = out / "resume" / COMPLETIONS
    log.write_text(log.read_text() * 2)
    with pytest.raises(CosmicError, match=r"known: positive, baseline takes one row .* 2 in all; found 4 that"):
        run(demo, prompts, out, SETTINGS)
    log.write_text(log.read_text()[: len(log.read_text()) // 2])
    assert len(run(demo, prompts, out, SETTINGS).effects.completions) == 2 * 10
