import json

import pytest

from cosmic_tl import CosmicError, load_prompts
from cosmic_tl._util.files import append_lines, read_lines
from cosmic_tl.data.named import load_dataset_prompts
from cosmic_tl.data.readers import numbered_lines

# str.splitlines cuts at each of these; in a prompt they are text.
SEPARATORS = ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]
ODD = [f"one{mark}prompt {i}" for i, mark in enumerate(SEPARATORS)]
PLAIN = [f"plain {i}" for i in range(len(ODD))]


def write(path, prompts):
    rows = [{"prompt": text} for text in prompts]
    match path.suffix:
        case ".txt":
            text = "\r\n".join(prompts)
        case ".csv":
            text = "prompt\r\n" + "".join(f"{text}\r\n" for text in prompts)
        case ".jsonl":
            text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        case _:
            text = json.dumps(rows, ensure_ascii=False)
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl", "json"])
def test_one_prompt_stays_one(tmp_path, suffix):
    odd, plain = write(tmp_path / f"odd.{suffix}", ODD), write(tmp_path / f"plain.{suffix}", PLAIN)
    found = load_prompts(positive=odd, negative=plain)
    assert sorted(p for split in found.positive.values() for p in split) == sorted(ODD)
    assert sorted(p for split in found.negative.values() for p in split) == PLAIN


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json"])
def test_one_prompt_of_a_named_set_stays_one(tmp_path, suffix):
    assert load_dataset_prompts("advbench", path=write(tmp_path / f"odd.{suffix}", ODD)).prompt.tolist() == ODD


def test_both_sides_in_one_table(tmp_path):
    rows = [("positive", text) for text in ODD] + [("negative", text) for text in PLAIN]
    # A quoted field holds line ends, which the csv module keeps as they are.
    rows += [("negative", "two\r\nlines")]
    (tmp_path / "a.csv").write_bytes(b"side,prompt\n" + "".join(f'{s},"{t}"\n' for s, t in rows).encode())
    found = load_prompts(tmp_path / "a.csv")
    assert sorted(p for split in found.positive.values() for p in split) == sorted(ODD)
    assert sorted(p for split in found.negative.values() for p in split) == [*PLAIN, "two\r\nlines"]


def test_lines_of_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufefffirst\r\n \n\nlast\u2028of all".encode())
    assert [*numbered_lines(path).values()] == ["first", "last\u2028of all"]
    path.write_bytes(b"\xff\xff")
    with pytest.raises(CosmicError, match="is not UTF-8") as caught:
        load_prompts(positive=path, negative=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tail", ['{"a": 2}', '{"a": 2}\n', '{"a": 2', '{"a": "é'])
def test_reading_changes_no_file_and_keeps_a_last_row_without_newline(tmp_path, tail):
    path = tmp_path / "a.jsonl"
    whole = b'{"a": 1}\n' + tail.encode()[: -1 if tail.endswith("é") else None]
    path.write_bytes(whole)
    kept = [{"a": 1}, {"a": 2}] if "}" in tail else [{"a": 1}]
    assert read_lines(path, dict) == kept
    assert path.read_bytes() == whole
    append_lines(path, [{"a": 3}])
    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == [*kept, {"a": 3}]


def test_a_log_of_one_torn_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"rows": [{"a"')
    assert read_lines(path, dict) == []
    append_lines(path, [{"a": 1}])
    assert path.read_text() == '{"a": 1}\n'


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a"\n{"a": 3}\n')
    with pytest.raises(CosmicError, match=r"file: line 2 of .* is no JSON object; delete it"):
        read_lines(path, dict)
    for damage in (b"\x00" * 8, b"7", b"[1]", b'"a"', b"\xff\xfe"):
        path.write_bytes(b'{"a": 1}\n' + damage + b'\n{"a": 3}\n')
        with pytest.raises(CosmicError, match=r"file: line 2 of "):
            read_lines(path, dict)
