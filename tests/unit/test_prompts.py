import json

import datasets
import pytest

from cosmic_tl import CosmicError, load_prompts

SIDES = {"positive": [f"bad {i}" for i in range(8)], "negative": [f"good {i}" for i in range(8)]}


def test_two_text_files(tmp_path):
    for side, prompts in SIDES.items():
        (tmp_path / f"{side}.txt").write_text("\n".join(prompts) + "\n\n")
    found = load_prompts(positive=tmp_path / "positive.txt", negative=tmp_path / "negative.txt")
    assert sorted(p for split in found.positive.values() for p in split) == SIDES["positive"]
    assert {split: len(p) for split, p in found.negative.items()} == {"train": 4, "val": 2, "test": 2}
    assert found.problems() == []


def test_json_with_and_without_splits(tmp_path):
    path = tmp_path / "set.json"
    path.write_text(json.dumps(SIDES))
    assert len(load_prompts(path).side("positive", "train")) == 4
    splits = {side: {"train": p[:4], "val": p[4:6], "test": p[6:]} for side, p in SIDES.items()}
    path.write_text(json.dumps({**splits, "contrast": {"test": [["bad", "good"]]}}))
    found = load_prompts(path)
    assert found.side("negative", "val") == ["good 4", "good 5"]
    assert found.contrast["test"] == (("bad", "good"),)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_tables_with_both_sides(tmp_path, suffix):
    path = tmp_path / f"set.{suffix}"
    rows = [{"side": side, "prompt": f"{p}, now"} for side, prompts in SIDES.items() for p in prompts]
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        path.write_text("side,prompt\n" + "\n".join(f'{r["side"]},"{r["prompt"]}"' for r in rows))
    found = load_prompts(path)
    assert sorted(p for split in found.negative.values() for p in split) == [f"{p}, now" for p in SIDES["negative"]]


def test_local_data_sets_and_columns(tmp_path):
    for side, prompts in SIDES.items():
        (tmp_path / side).mkdir()
        datasets.Dataset.from_dict({"Goal": prompts, "id": range(8)}).to_parquet(tmp_path / side / "train.parquet")
    found = load_prompts(positive=tmp_path / "positive", negative=tmp_path / "negative", column="Goal")
    assert sorted(p for split in found.positive.values() for p in split) == SIDES["positive"]
    with pytest.raises(CosmicError, match="column: None is not a text column"):
        load_prompts(positive=tmp_path / "positive", negative=tmp_path / "negative")


def test_splitting_depends_on_the_seed_alone(tmp_path):
    path = tmp_path / "set.json"
    path.write_text(json.dumps(SIDES))
    assert load_prompts(path, seed=1) == load_prompts(path, seed=1)
    assert load_prompts(path, seed=1) != load_prompts(path, seed=2)


def test_duplicates_and_leakage_are_reported(tmp_path):
    path = tmp_path / "set.json"
    path.write_text(json.dumps({**SIDES, "positive": [*SIDES["positive"], "bad 1", "good 1"]}))
    notes = load_prompts(path).notes
    assert notes[0] == "1 repeated positive prompt was dropped"
    assert any("on both sides, as 'good 1'" in note for note in notes)
    path.write_text(json.dumps({"positive": {"train": ["a", "a"], "test": ["a"]}, "negative": {"train": ["b"]}}))
    notes = load_prompts(path).notes
    assert any("repeated in positive train" in note for note in notes)
    assert any("more than one split" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"positive": []}', "needs the keys"),
        ("a.json", '{"positive": [], "negative": ["x"]}', "is empty"),
        ("a.json", '{"positive": "text", "negative": ["x"]}', "list of texts"),
        ("a.json", '{"positive": ["a", "b"], "negative": ["x"]}', "give at least 3"),
        ("a.json", '{"positive": {"dev": ["a"]}, "negative": ["x"]}', "unknown split 'dev'"),
        ("a.jsonl", '{"side": "left", "prompt": "x"}', "has side 'left'"),
        ("a.jsonl", "[1]", "must be a JSON object"),
        ("a.csv", "side,words\npositive,x", "not a text column"),
        ("a.txt", "x", "cannot hold both sides"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(CosmicError, match=message) as caught:
        load_prompts(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_bad_arguments(prompts):
    with pytest.raises(CosmicError, match="together"):
        load_prompts(positive="x.txt")
    with pytest.raises(CosmicError, match=r"no file 'x.txt'"):
        load_prompts(positive="x.txt", negative="y.txt")
    with pytest.raises(CosmicError, match="could not load data set 'no/such'"):
        load_prompts(positive="no/such", negative="no/such")
    with pytest.raises(CosmicError, match="n_val: must be at least 1, found 0"):
        prompts.side("positive", "val", 0)


def test_categories_are_kept(tmp_path):
    rows = "prompt,category\n" + "".join(f"harmful {i},{'theft' if i % 2 else ''}\n" for i in range(8))
    (tmp_path / "harmful.csv").write_text(rows)
    (tmp_path / "harmless.txt").write_text("".join(f"harmless {i}\n" for i in range(8)))
    found = load_prompts(positive=tmp_path / "harmful.csv", negative=tmp_path / "harmless.txt")
    assert found.categories == {f"harmful {i}": "theft" for i in (1, 3, 5, 7)}
    assert load_prompts("demo").categories == {}
