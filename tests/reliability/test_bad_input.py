"""Bad input, as data: each gives one line that names the argument, and changes nothing on disk."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from good import namespace

from cosmic_tl import CosmicError, CosmicOptions, RunSettings, cli, load_prompts, run

HERE = Path(__file__).parent
CALLS: list[list[str]] = json.loads((HERE / "bad_calls.json").read_text(encoding="utf-8"))
"""A call and its message."""
COMMANDS: list[list[str]] = json.loads((HERE / "bad_commands.json").read_text(encoding="utf-8"))
"""A command line and its message, or the message's beginning where a library ends it."""
GOOD = b"a\nb\nc\n"
FILES: list[tuple[str, bytes, str]] = [
    ("latin.txt", b"uno\nfa\xe7ade\n", "line 2 of {} is not UTF-8 (byte 0xe7)"),
    ("nul.txt", b"uno\n\0due\n", "line 2 of {} holds a NUL"),
    ("binary.txt", bytes(range(256)), "line 2 of {} is not UTF-8"),
    ("utf16.txt", "uno\ndue\n".encode("utf-16-le"), "line 1 of {} holds a NUL"),
    ("cut-utf16.txt", "uno\ndue\n".encode("utf-16")[:-1], "is not UTF-16-LE"),
    ("empty.txt", b"", "is empty; add prompts"),
    ("blank.txt", b"\n  \n\n", "is empty; add prompts"),
    ("one.txt", b"a\n", "1 cannot be split into train, val and test"),
    ("mac.txt", b"a\rb\rc\r", "lines of {} end in \\r alone"),
    ("number.jsonl", b'{"prompt":"a"}\n{"prompt":3}\n', "line 2 has int"),
    ("other-key.jsonl", b'{"prompt":"a"}\n\n{"prmpt":"b"}\n', "line 3 has nothing"),
    ("list.jsonl", b'{"prompt":"a"}\n[1]\n', "line 2 of {} must be a JSON object, found list"),
    ("cut.jsonl", b'{"prompt":"a"}\n{"prompt":\n', "line 2 of {} is not JSON"),
    ("null.jsonl", b'{"prompt":null}\n', "line 1 has NoneType"),
    ("empty.jsonl", b"", "is empty; add prompts"),
    (
        "some-split.jsonl",
        b'{"prompt":"a","split":"train"}\n{"prompt":"b"}\n',
        "line 2 of {} has no split, and others have",
    ),
    ("odd-split.jsonl", b'{"prompt":"a","split":"trian"}\n', "split in line 1 of {}: unknown 'trian'"),
    ("twice.jsonl", b'{"prompt":"a","prompt":"b"}\n', "line 1 of {} has the key 'prompt' more than once"),
    ("surrogate.jsonl", b'{"prompt":"\\ud800"}\n{"prompt":"b"}\n{"prompt":"c"}\n', "half of a surrogate pair at 0"),
    ("huge.json", b"[" + b"9" * 5000 + b"]", "{} is not JSON"),
    ("deep.json", b"[" * 100_000 + b"]" * 100_000, "{} is not JSON"),
    ("nan.json", b"[NaN]", "must be a list of texts, found float at 0"),
    ("mapping.json", b'{"a":1}', "positive split: unknown 'a'"),
    ("number.json", b"3", "must be a list of texts, found int"),
    ("text.json", b'"abc"', "must be a list of texts, found the text 'abc'"),
    ("null.json", b"null", "must be a list of texts, found NoneType"),
    ("nested.json", b'[["a"]]', "must be a list of texts, found list at 0"),
    ("objects.json", b'[{"prompt":"a"},{"prompt":"b"},{"text":"c"}]', "entry 2 has nothing"),
    ("mixed.json", b'[{"prompt":"a"},"b"]', "must be a list of texts, found dict at 0"),
    ("cut.json", b'["a", "b"', "{} is not JSON"),
    ("twice.csv", b"prompt,prompt\na,b\n", "{} has the column 'prompt' more than once"),
    ("short.csv", b"prompt,side\na,b\nc\n", "line 3 of {} has 1 fields for 2 columns"),
    ("long.csv", b"prompt,side\na,b,c\n", "line 2 of {} has 3 fields for 2 columns"),
    ("open-quote.csv", b'prompt\n"a\nb"\n"c\n', "line 4 of {} cannot be read"),
    ("after-rows-of-two-lines.csv", b'prompt\n"a\nb"\nc,d\n', "line 4 of {} has 2 fields for 1 columns"),
    ("head.csv", b"prompt\n", "is empty; add prompts"),
    ("empty.csv", b"", "is empty; add prompts"),
    ("other-column.csv", b"x\na\n", "is not a text column of {}; it has x"),
    ("nul.csv", b"prompt\na\0b\n", "line 2 of {} holds a NUL"),
    ("large.csv", b"prompt\n" + b"a" * 200_000 + b"\n", "line 2 of {} cannot be read"),
    ("both.jsonl", b'{"prompt":"a","side":"harmful"}\n', "line 1 of {} has side 'harmful'"),
    ("both-one.jsonl", b'{"prompt":"a","side":"positive"}\n', "negative of {} is empty"),
    ("both.json", b'{"positive":["a"]}', "{} needs the keys 'positive' and 'negative'"),
    (
        "both-pairs.json",
        b'{"positive":["a"],"negative":["b"],"contrast":[1]}',
        "'contrast' of {} must map splits to pairs",
    ),
    (
        "both-texts.json",
        b'{"positive":["a","b","c"],"negative":["d","e","f"],"contrast":{"train":["xy"]}}',
        "has no pair of texts at 0",
    ),
    ("both-labels.json", b'{"positive":["a","b","c"],"negative":["d","e","f"],"labels":["x"]}', "labels: found ['x']"),
    ("both-split.json", b'{"positive":{"trian":["a"]},"negative":["d","e","f"]}', "unknown 'trian'"),
    ("both-text.json", b'{"positive":"abc","negative":["d","e","f"]}', "found the text 'abc'"),
    ("both-empty.json", b'{"positive":[],"negative":["d","e","f"]}', "is empty; add prompts"),
    ("both-null.json", b'{"positive":null,"negative":["d","e","f"]}', "found NoneType"),
    ("both.txt", b"a\n", "{} cannot hold both sides"),
]
"""Name, content and message; `both…` hold both sides."""


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_there_are_enough_of_them() -> None:
    assert len(CALLS) + len(COMMANDS) + len(FILES) >= 600
    assert len({call for call, _ in CALLS}) == len(CALLS) and len({line for line, _ in COMMANDS}) == len(COMMANDS)


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    return namespace()


def test_calls(names: dict[str, Any]) -> None:
    """One test, because every one of them takes a millisecond."""
    wrong = []
    before = contents(Path(names["folder"]))
    for call, message in CALLS:
        try:
            eval(call, names)
            wrong.append((call, "accepted"))
        except CosmicError as error:  # noqa: PERF203
            if str(error) != message or "\n" in message:
                wrong.append((call, str(error)))
        except Exception as error:
            wrong.append((call, repr(error)))
    assert wrong == []
    assert contents(Path(names["folder"])) == before


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, demo: Any) -> Path:
    """A directory with a finished run, and files that are not what is asked for."""
    folder = tmp_path_factory.mktemp("bad")
    options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0)
    run(demo, load_prompts("demo"), folder / "run", RunSettings(options, n_test=2, max_new_tokens=4, n_placebos=1))
    (folder / "text.txt").write_bytes(GOOD)
    (folder / "bad.json").write_text("{")
    (folder / "latin.txt").write_bytes(b"fa\xe7ade\n")
    (folder / "file").write_text("x")
    (folder / "pairs.jsonl").write_text('{"instruction": 3}\n')
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("x")
    return folder


def test_commands(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(place)
    wrong = []
    before = contents(place)
    for line, message in COMMANDS:
        monkeypatch.setattr(sys, "argv", ["cosmic-tl", *shlex.split(line)])
        code: object = None
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        except Exception as error:
            code = repr(error)
        said = [one for one in capsys.readouterr().err.splitlines() if one.strip() and "Loading weights" not in one]
        if code != 2 or len(said) != 1 or not said[0].startswith(f"Error: {message}"):
            wrong.append((line, code, said))
        if (after := contents(place)) != before:
            wrong.append((line, "changed", sorted(set(after) ^ set(before))))
            before = after
    assert wrong == []


@pytest.mark.parametrize(("name", "content", "message"), FILES, ids=[name for name, _, _ in FILES])
def test_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    sources = {"source": path} if name.startswith("both") else {"positive": path, "negative": ["d", "e", "f"]}
    with pytest.raises(CosmicError) as error:
        load_prompts(**sources)
    assert "\n" not in str(error.value)
    assert message.replace("{}", repr(str(path))) in str(error.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_that_say_what_they_are_are_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("naïve\nτρία\n四\u2028五\n".encode(encoding))
    found = load_prompts(positive=tmp_path / "a.txt", negative=["d", "e", "f"], shuffle=False)
    assert [one for split in found.positive.values() for one in split] == ["naïve", "τρία", "四\u2028五"]


def test_what_is_left_out_or_changed_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["a ", "b", "", "c", "b"]')
    found = load_prompts(positive=tmp_path / "a.json", negative=["d", "e", "f"])
    assert found.notes == (
        "1 blank positive prompt was left out",
        "1 positive prompt had space at an end, which was cut off",
        "1 repeated positive prompt was dropped",
    )


def test_the_split_column_of_one_side_is_used(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,split\na,test\nb,train\nc,val\n")
    found = load_prompts(positive=tmp_path / "a.csv", negative=["d", "e", "f"])
    assert found.positive == {"test": ("a",), "train": ("b",), "val": ("c",)}
