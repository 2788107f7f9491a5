"""Logs that were edited or damaged are named, and nothing is made of them."""

import json
import shutil
from dataclasses import replace
from math import nan

import pytest
import torch

from cosmic_tl import AffineEdit, CosmicError, CosmicOptions, Direction, RunSettings, engine, run
from cosmic_tl._util.files import read_lines
from cosmic_tl.engine import passes
from cosmic_tl.model import batching
from cosmic_tl.model.chat import tokenize
from cosmic_tl.runs.logs import SizeLog

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
            r"line 1 of .*scores\.jsonl' was not written here \('value'\); delete",
        ),
        (
            SCORES,
            lambda row: row.update(value="high"),
            r"line 1 of .*scores\.jsonl' was not written here .*'high'",
        ),
        (SCORES, lambda row: row.update(layer=3.7), r"line 1 of .*scores\.jsonl' was not written here .*3\.7"),
        (SCORES, lambda row: row.update(position=True), r"line 1 of .*scores\.jsonl' was not written here .*True"),
        (SCORES, lambda row: row.update(layer=None), r"line 1 of .*scores\.jsonl' was not written here"),
        (PLACEBOS, lambda row: row.update(mood="good"), r"line 1 of .*placebos\.jsonl' was not written here"),
        (
            COMPLETIONS,
            lambda row: row.pop("rows"),
            r"line 1 of .*completions\.jsonl' was not written here \('rows'\)",
        ),
        (COMPLETIONS, lambda row: row["rows"].append(7), r"line 1 of .*completions\.jsonl' was not written here"),
        (
            COMPLETIONS,
            without("verdict"),
            rf"line 1 of .*{COMPLETIONS}' was not written here \(found a row that is no answer",
        ),
        (
            COMPLETIONS,
            without("prompt"),
            rf"line 1 of .*{COMPLETIONS}' was not written here \(found a row that is no answer",
        ),
        (
            COMPLETIONS,
            lambda row: row["rows"][0].update(side="harmful"),
            rf"line 1 of .*{COMPLETIONS}' was not written here \(found a row that is no answer",
        ),
        (
            COMPLETIONS,
            lambda row: row["rows"].append(row["rows"][0]),
            r"line 1 of .* was not written here .positive, baseline takes one row .* 2 in all; found 3 that",
        ),
        (
            COMPLETIONS,
            lambda row: row["rows"].pop(),
            r"line 1 of .* was not written here .positive, baseline takes one row .* 2 in all; found 1 that",
        ),
        (COMPLETIONS, lambda row: row["rows"][0].update(verdict="maybe"), r"line 1 of .*found a row that is no answer"),
        (
            COMPLETIONS,
            lambda row: row["rows"][0].update(nats_per_token=nan),
            r"line 1 of .*numbers that are not finite",
        ),
        (
            COMPLETIONS,
            lambda row: [one.update(condition="kindness") for one in row["rows"]],
            "kindness is not measured here",
        ),
        (
            COMPLETIONS,
            other_prompt,
            r"line 1 of .* was not written here .positive, baseline takes one row .* 2 in all; found 2 that",
        ),
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
    with pytest.raises(CosmicError, match=r"line 11 of .* was not written here .positive, baseline is there twice"):
        run(demo, prompts, out, SETTINGS)
    log.write_text(log.read_text()[: len(log.read_text()) // 2])
    assert len(run(demo, prompts, out, SETTINGS).effects.completions) == 2 * 10


def test_a_run_goes_on_with_the_batches_that_it_began_with(demo, prompts, tmp_path, monkeypatch):
    """Although the memory that is free, or the speed that rows per pass are chosen for, has changed."""
    settings = RunSettings(
        CosmicOptions(n_train=8, n_val=4, n_positions=2, max_kl=50.0, n_resamples=20),
        n_test=1,
        max_new_tokens=2,
        n_placebos=1,
    )
    whole, out = tmp_path / "whole", tmp_path / "run"
    run(demo, prompts, whole, settings)
    sizes = (whole / "resume" / "sizes.jsonl").read_bytes()
    assert sizes.count(b"\n") >= 1
    shutil.copytree(whole, out)
    for path in [*out.glob("*.*"), *(out / "resume").glob("*.jsonl")]:
        if path.name not in ("settings.json", "sizes.jsonl"):
            path.unlink()
    monkeypatch.setattr(batching, "CPU_TOKENS", 40)
    run(demo, prompts, out, settings)
    assert (out / "resume" / "sizes.jsonl").read_bytes() == sizes
    assert (out / "scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()
    assert (out / "completions.jsonl").read_bytes() == (whole / "completions.jsonl").read_bytes()


def test_fewer_rows_are_remembered_once_memory_has_run_out(demo, prompts, tmp_path, monkeypatch):
    rows = tokenize(demo, prompts.side("positive", "val", 8))
    edits = [
        AffineEdit(Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1), alpha) for alpha in (0.0, 1.0)
    ]
    plain, tried = passes.forward, []

    def small(model, batch, *args, **kwargs):
        tried.append(len(batch.rows))
        if len(batch.rows) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return plain(model, batch, *args, **kwargs)

    monkeypatch.setattr(passes, "forward", small)
    sizes = SizeLog(tmp_path / "sizes.jsonl")
    with batching.sizes_kept(sizes):
        _ = dict(
            engine.intervened(demo, rows, edits, engine.Reading((6,)), lambda outcome: outcome.resid_post[6][:, -1])
        )
    first, *_, last = read_lines(tmp_path / "sizes.jsonl", dict)
    assert first["tokens"] == last["tokens"] and last["rows"] < first["rows"]
    assert dict(SizeLog(tmp_path / "sizes.jsonl")) == dict(sizes) == {("cpu", last["tokens"]): last["rows"]}


def test_no_score_is_written_twice(demo, prompts, tmp_path):
    """Where products are missing, or the details of a divergence, what is known is computed again, and logged as it was."""
    small = CosmicOptions(n_train=8, n_val=4, n_positions=2, max_kl=50.0, n_resamples=0)
    settings = RunSettings(small, n_test=1, max_new_tokens=2, n_placebos=1)
    out, log = tmp_path / "run", tmp_path / "run" / "resume" / SCORES
    run(demo, prompts, out, settings)
    assert run(demo, prompts, out, settings).selection.stability is None
    sure = replace(settings, selection=replace(small, n_resamples=20))
    first = run(demo, prompts, out, sure, overwrite=True).selection.stability
    whole = log.read_text()
    lines = whole.splitlines(keepends=True)
    assert len({line[: line.index('"value"')] for line in lines}) == len(lines)
    (out / "summary.json").unlink()
    cut = next(i for i, line in enumerate(lines) if '"kl"' in line and "NaN" not in line) + 1
    log.write_text("".join(lines[:cut]))  # a stop between the lines of one divergence
    again = run(demo, prompts, out, sure).selection.stability
    assert again.table.equals(first.table) and sorted(log.read_text().splitlines()) == sorted(whole.splitlines())
    assert run(demo, prompts, out, replace(sure, selection=replace(sure.selection, max_kl=40.0)), overwrite=True)
