"""Any prompt survives every format, and any bytes are read or refused in one line: for a few minutes in `make fuzz`."""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

from cosmic_tl import Candidates, CosmicError, CosmicOptions, Direction, Effects, RunSettings, load_prompts
from cosmic_tl._util.files import append_lines, read_lines, write_atomically
from cosmic_tl.data.behaviours import load_behaviour
from cosmic_tl.generation.options import Sampling
from cosmic_tl.judges.response_cache import ResponseCache
from cosmic_tl.judges.templates import parse_guard, parse_rubric
from cosmic_tl.runs.directory import check_directory
from cosmic_tl.runs.logs import ScoreLog
from cosmic_tl.runs.run_files import read_settings
from cosmic_tl.suffixes import Suffix

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n")
PROMPTS = st.lists(st.text(CHARACTERS, min_size=1).map(str.strip).filter(bool), min_size=3, max_size=8, unique=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=8), inside, max_size=4),
    max_leaves=12,
)
NAMES = ("prompt", "side", "split", "question", "layer", "position", "measure", "value", "key", "answer")
ROWS = st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, JSON)), max_size=6)
BYTES = (
    st.binary(max_size=200)
    | JSON.map(json.dumps).map(str.encode)
    | ROWS.map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
)


@contextmanager
def refused_in_one_line() -> Iterator[None]:
    """Or not refused at all."""
    try:
        yield
    except CosmicError as error:
        if "\n" in str(error) or not 10 < len(str(error)) < 2000:
            pytest.fail(str(error))


@pytest.mark.parametrize("suffix", ["txt", "json", "jsonl", "csv"])
@given(prompts=PROMPTS)
def test_any_prompt_survives_every_format(suffix: str, prompts: list[str]) -> None:
    if suffix == "csv":
        table = io.StringIO()
        csv.writer(table).writerows([["prompt"], *([prompt] for prompt in prompts)])
        text = table.getvalue()
    else:
        lines = prompts if suffix == "txt" else [json.dumps({"prompt": prompt}) for prompt in prompts]
        text = json.dumps(prompts) if suffix == "json" else "\n".join(lines)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{suffix}"
        path.write_bytes(text.encode())
        found = load_prompts(positive=path, negative=["\U0001f600", "\U0001f601", "\U0001f602"], shuffle=False)
    assert [prompt for split in found.positive.values() for prompt in split] == prompts


READERS: dict[str, Any] = {
    "a.txt": lambda path: load_prompts(positive=path, negative=["a", "b", "c"]),
    "a.json": lambda path: load_prompts(path),
    "a.jsonl": lambda path: load_prompts(positive=path, negative=["a", "b", "c"]),
    "both.jsonl": lambda path: load_prompts(path),
    "a.csv": lambda path: load_prompts(positive=path, negative=["a", "b", "c"]),
    "both.csv": lambda path: load_prompts(path),
    "behaviour.json": load_behaviour,
    "direction.safetensors": Direction.load,
    "direction.pt": Direction.load,
    "rows.npy": lambda path: Direction.load(path, layer=0),
    "layers.npz": Candidates.load,
    "vectors.gguf": Candidates.load,
    "vectors.svec": Candidates.load,
    "candidates.safetensors": Candidates.load,
    "effects.safetensors": Effects.load,
    "suffix.json": Suffix.load,
    "log.jsonl": lambda path: read_lines(path, dict),
    "scores.jsonl": ScoreLog,
    "cache.jsonl": ResponseCache,
    "settings.json": lambda path: (read_settings(path.parent), check_directory(path.parent, {"seed": 0})),
}


@pytest.mark.parametrize("name", READERS)
@given(
    data=st.binary(max_size=200)
    | JSON.map(json.dumps).map(str.encode)
    | ROWS.map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
)
def test_any_bytes_are_read_or_refused_in_one_line(name: str, data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        with refused_in_one_line():
            READERS[name](path)
        assert path.read_bytes() == data


@given(
    vector=st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4).filter(any),
    layer=st.integers(0, 200),
    position=st.integers(-50, -1),
    method=st.text(CHARACTERS, max_size=20),
)
def test_any_direction_survives_its_file(vector: list[float], layer: int, position: int, method: str) -> None:
    direction = Direction(torch.tensor(vector), torch.zeros(4), layer=layer, position=position, method=method)
    with TemporaryDirectory() as folder:
        direction.save(f"{folder}/d.safetensors")
        first = Path(folder, "d.safetensors").read_bytes()
        found = Direction.load(f"{folder}/d.safetensors")
        found.save(f"{folder}/d.safetensors")
        assert Path(folder, "d.safetensors").read_bytes() == first
    assert torch.equal(found.vector, direction.vector)
    assert (found.layer, found.position, found.method) == (layer, position, method)


@given(data=st.data())
def test_any_flipped_byte_of_a_direction_is_refused(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "d.safetensors")
        Direction(torch.ones(4), torch.zeros(4), layer=3, position=-1).save(path)
        raw = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
        with refused_in_one_line():
            found = Direction.load(path)
            # Only in the spaces that pad the header can a change mean nothing.
            assert torch.equal(found.vector, torch.ones(4)) and (found.layer, found.position) == (3, -1)


NUMBERS = st.integers() | st.floats() | st.none()


@given(
    asked=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("n_test", "max_new_tokens", "temperature", "seed", "batch_size", "n_placebos"), NUMBERS
        ),
    ),
    chosen=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("alpha", "max_kl", "max_layer_share", "n_train", "n_val", "evaluation_share"), NUMBERS),
    ),
    sampling=st.fixed_dictionaries({}, optional=dict.fromkeys(("top_k", "top_p", "repetition_penalty"), NUMBERS)),
)
def test_any_options_are_taken_and_kept_or_refused(asked: Any, chosen: Any, sampling: Any) -> None:
    with refused_in_one_line():
        settings = RunSettings(CosmicOptions(**chosen), sampling=Sampling(**sampling), **asked)
        kept = RunSettings.from_json(json.loads(json.dumps(settings.to_json())))
        assert kept == replace(settings, batch_size=None)


@given(found=JSON | st.dictionaries(st.sampled_from(sorted(RunSettings().to_json())), JSON))
def test_any_settings_in_a_file_are_settings_or_refused(found: Any) -> None:
    with refused_in_one_line():
        settings = RunSettings.from_json({**RunSettings().to_json(), **found} if isinstance(found, dict) else found)
        assert RunSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


@given(answer=st.text())
def test_any_answer_of_a_judge_is_parsed_or_none(answer: str) -> None:
    for parse in (parse_guard, parse_rubric):
        found = parse(answer)
        assert found is None or found.verdict in ("safe", "unsafe", "refusal", "compliance", "neither")


@given(
    rows=st.lists(st.dictionaries(st.text(CHARACTERS), st.text(CHARACTERS) | st.integers()), max_size=5),
    cut=st.integers(0, 30),
)
def test_a_log_that_was_cut_short_loses_its_last_row_alone(rows: list[dict[str, Any]], cut: int) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        append_lines(path, rows)
        whole = path.read_bytes()
        last = len(whole.splitlines(keepends=True)[-1]) if whole else 0
        write_atomically(path, whole[: len(whole) - min(cut, last)])
        kept = rows if cut <= 1 else rows[:-1]  # without the newline alone it is whole
        assert read_lines(path, dict) == kept
        append_lines(path, [{"more": 1}])
        assert read_lines(path, dict) == [*kept, {"more": 1}]
