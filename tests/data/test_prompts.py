import json
from pathlib import Path

import datasets
import pandas as pd
import pytest

import cosmic_tl
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
    assert sorted(found.side("negative", "val")) == ["good 4", "good 5"]
    assert found.contrast["test"] == (("bad", "good"),)


def test_the_sides_have_names(tmp_path):
    assert load_prompts("demo").labels == ("harmful", "harmless")
    assert load_prompts(**SIDES).labels is None
    assert load_prompts(**SIDES, labels=["pirate", "plain"]).labels == ("pirate", "plain")
    path = tmp_path / "set.json"
    for labels in (["pirate", "plain"], {"negative": "plain", "positive": "pirate"}):
        path.write_text(json.dumps({**SIDES, "labels": labels}))
        assert load_prompts(path).labels == ("pirate", "plain")
        assert load_prompts(path, labels=("a", "b")).labels == ("a", "b")
    assert "pirate + plain" in repr(load_prompts(path))


@pytest.mark.parametrize(
    "labels",
    ["ab", ["a"], ["a", "a"], ["a", "a "], ["a", ""], ["a", "b\n"], ["a", 1], {"positive": "a"}, ["a", "b" * 41], 3],
)
def test_bad_names_of_sides_are_refused(tmp_path, labels):
    path = tmp_path / "set.json"
    path.write_text(json.dumps({**SIDES, "labels": labels}))
    with pytest.raises(CosmicError, match=r"labels: found .*; give two different names"):
        load_prompts(path)


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
        ("a.json", '{"positive": {"dev": ["a"]}, "negative": ["x"]}', "unknown 'dev'; use train, val or test"),
        ("a.jsonl", '{"side": "left", "prompt": "x"}', "has side 'left'"),
        ("a.jsonl", '{"side": "positive", "prompt": "x"}', "negative of .* is empty"),
        (
            "a.csv",
            "side,split,prompt\npositive,train,x\npositive,,y\nnegative,train,z",
            "line 3 of .* has no split, and others have one",
        ),
        ("a.jsonl", "[1]", "must be a JSON object"),
        ("a.csv", "side,words\npositive,x\nnegative,y", "not a text column"),
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
    with pytest.raises(CosmicError, match=r"no file or directory 'x.txt'"):
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


def test_lists_and_mappings_in_memory():
    lists = load_prompts(positive=SIDES["positive"], negative=tuple(SIDES["negative"]), seed=1)
    assert lists.name == "in memory" and sorted(p for s in lists.positive.values() for p in s) == SIDES["positive"]
    assert load_prompts(SIDES, seed=1) == lists
    splits = {side: {"train": p[:4], "val": p[4:6], "test": p[6:]} for side, p in SIDES.items()}
    both = load_prompts({**splits, "contrast": {"val": [("bad", "good")]}}, shuffle=False, name="mine")
    assert both.name == "mine" and both.contrast == {"val": (("bad", "good"),)}
    assert both.positive == {split: tuple(some) for split, some in splits["positive"].items()}
    mixed = load_prompts(positive=splits["positive"], negative=SIDES["negative"], shuffle=False)
    assert mixed.side("positive", "test") == splits["positive"]["test"] and len(mixed.side("negative", "train")) == 4
    rows = [{"instruction": text, "category": f"kind {i}"} for i, text in enumerate(SIDES["positive"])]
    found = load_prompts(positive=rows, negative=SIDES["negative"])
    assert found.categories == {text: f"kind {i}" for i, text in enumerate(SIDES["positive"])}


def test_a_file_beside_a_list_names_both(tmp_path):
    (tmp_path / "bad.txt").write_text("\n".join(SIDES["positive"]))
    assert load_prompts(positive=tmp_path / "bad.txt", negative=SIDES["negative"]).name == "bad / in memory"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"positive": {"train": "a text"}, "negative": ["b"]},
            r"prompts: positive train of .*: must be a list of texts",
        ),
        ({"positive": ["a", 1, "c"], "negative": ["b"]}, "found int at 1"),
        ({"positive": ["a"]}, "needs the keys 'positive' and 'negative'"),
        ({"positive": pd.Series(["a"]), "negative": ["b"]}, "found Series; pass a list"),
    ],
)
def test_what_is_no_list_of_texts_is_named(given, message):
    with pytest.raises(CosmicError, match=message) as caught:
        load_prompts(given)
    assert "\n" not in str(caught.value)


def test_splits_of_a_sorted_file_are_shuffled_by_the_seed(tmp_path):
    kinds = [{"instruction": f"{kind} {i}", "category": kind} for kind in ("fraud", "theft") for i in range(20)]
    data = {"positive": dict.fromkeys(("train", "val", "test"), kinds), "negative": {"train": ["a", "b"]}}
    path = tmp_path / "sorted.json"
    path.write_text(json.dumps(data))
    texts = [row["instruction"] for row in kinds]
    found, again, other = (load_prompts(path, seed=seed) for seed in (0, 0, 1))
    first = found.side("positive", "train", 20)
    assert {text.split()[0] for text in first} == {"fraud", "theft"}
    assert sorted(found.side("positive", "train")) == sorted(texts)
    assert again == found and other.positive != found.positive
    assert load_prompts(path, shuffle=False).side("positive", "train") == texts
    # A source without splits of its own is cut where it stands.
    whole = load_prompts(positive=texts, negative=texts[::-1], shuffle=False)
    assert whole.side("positive", "train") == texts[:20] and whole.side("positive", "test") == texts[30:]


def test_the_demo_set_is_in_its_own_order_and_shuffled():
    data = json.loads((Path(cosmic_tl.__file__).parent / "demo" / "prompts.json").read_text())
    assert load_prompts("demo") == load_prompts("demo", seed=5, shuffle=False)
    for side in ("positive", "negative"):
        assert {split: list(some) for split, some in getattr(load_prompts("demo"), side).items()} == data[side]
    # The way of asking is what the prompts are drawn by; the first prompts have as many of them as any others.
    ways = [text.split()[0] for text in data["positive"]["train"]]
    assert len(set(ways[:50])) > 0.5 * len(set(ways)) and ways != sorted(ways)


def released(folder):
    folder.mkdir()
    for side, kind in (("harmful", "fraud"), ("harmless", None)):
        for split, n in (("train", 6), ("val", 3), ("test", 3)):
            rows = [{"instruction": f"{side} {split} {i}", "category": kind} for i in range(n)]
            (folder / f"{side}_{split}.json").write_text(json.dumps(rows))
    return folder


def test_a_directory_of_released_splits_is_a_contrast_set(tmp_path):
    folder = released(tmp_path / "splits")
    (folder / "harmful.json").write_text("[]")
    found = load_prompts(folder)
    assert repr(found) == "ContrastSet('splits': train 6 + 6, val 3 + 3, test 3 + 3, harmful + harmless)"
    assert sorted(found.side("negative", "val")) == [f"harmless val {i}" for i in range(3)]
    assert set(found.categories) == {text for some in found.positive.values() for text in some}
    assert load_prompts(str(folder), shuffle=False).side("positive", "train", 2) == [
        "harmful train 0",
        "harmful train 1",
    ]


def test_missing_files_of_released_splits_are_named(tmp_path):
    folder = released(tmp_path / "splits")
    (folder / "harmful_val.json").unlink()
    (folder / "harmless_test.json").unlink()
    with pytest.raises(CosmicError, match=r"has no harmful_val.json, harmless_test.json; ") as caught:
        load_prompts(folder)
    assert "\n" not in str(caught.value)
