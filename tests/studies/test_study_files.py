"""A study's YAML is read as it is meant, or refused in one line; and its command."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from cosmic_tl import ChatFormat, CosmicError, CosmicOptions, RefusalTokenOptions, RunSettings, Sampling
from cosmic_tl.studies import read_study

FEW = (
    "{name: few, selection: {n_train: 8, n_val: 4, n_positions: 1, max_kl: 10.0, n_resamples: 0}, n_test: 2, "
    "max_new_tokens: 4, n_placebos: 1}"
)
GOOD = f"models: [demo]\nprompts: [demo]\nsettings:\n  - {FEW}\n"


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "study.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_everything_that_a_file_can_say(written, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text("{}")
    (tmp_path / "own.json").write_text("{}")
    study = read_study(
        written(
            """
            name: all
            models:
              - demo
              - model: weights
                name: local
                dtype: bfloat16
                device: cpu
                prompts: [own]
                settings: {chat: {system: Be brief.}, selection: {exclude_first_half: true, max_kl: 1}, n_test: 3}
                published:
                  - {measure: layer, value: 3, source: "a table", settings: tokens}
              - {model: org/large, device_map: auto, revision: v2, trust_remote_code: true}
            prompts:
              - demo
              - {name: own, source: own.json, labels: [yes-men, no-men], shared: false}
            settings:
              - {name: plain}
              - name: tokens
                select: refusal-tokens
                selection: {n_train: 8, directions: [dim, pca], cell: [3, -1]}
                sampling: {top_k: 5}
                temperature: 1
                phrases: [ahoy]
                batch_size: 4
            seeds: [0, 1]
            alpha: [1, 0.5]
            """
        )
    )
    first, second, third = study.models
    assert (first.model, second.model, third.model) == ("demo", str(tmp_path / "weights"), "org/large")
    assert (third.device_map, third.revision, third.trust_remote_code) == ("auto", "v2", True)
    assert (second.dtype, second.device, third.name) == ("bfloat16", "cpu", "large")
    assert study.prompts[1].options == {"source": str(tmp_path / "own.json"), "labels": ["yes-men", "no-men"]}
    assert len(study.cases) == 3 * 1 * 2 * 2 * 2
    by_name = {case.name: case for case in study.cases}
    assert by_name["demo, demo, plain, seed 0, α 1"].settings == RunSettings(CosmicOptions(alpha=1.0))
    expected = RefusalTokenOptions(n_train=8, directions=("dim", "pca"), cell=(3, -1), alpha=0.5)
    tokens = by_name["demo, demo, tokens, seed 1, α 0.5"].settings
    assert tokens == RunSettings(
        expected, temperature=1.0, sampling=Sampling(top_k=5), phrases=("ahoy",), batch_size=4, seed=1
    )
    local = by_name["local, own, plain, seed 1, α 0.5"].settings
    assert local.chat == ChatFormat(system="Be brief.") and local.n_test == 3
    assert local.selection == CosmicOptions(exclude_first_half=True, max_kl=1.0, alpha=0.5)
    # What COSMIC alone has stands for its entries only.
    assert by_name["local, own, tokens, seed 1, α 0.5"].settings.selection.max_kl == 1.0


def test_whole_numbers_and_others_are_one_setting(written):
    one, other = (
        read_study(written(f"models: [demo]\nprompts: [demo]\nalpha: [{a}]\n")).cases[0] for a in ("1", "1.0")
    )
    assert json.dumps(one.settings.to_json()) == json.dumps(other.settings.to_json())


def test_paths_do_not_depend_on_where_one_stands(written, tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    path = written("models: [m]\nprompts: [demo]\n")
    whole = read_study(path)
    monkeypatch.chdir(tmp_path)
    assert read_study(path.name) == whole


BAD = [
    ("", "expected names with values, found None"),
    ("[1]", "expected names with values"),
    ("models: [demo", "is no YAML (line"),
    ("models: [demo]\nmodels: [demo-weak]\nprompts: [demo]", "'models' is there twice"),
    (GOOD.replace("n_test: 2", "n_test: 2, n_test: 3"), "'n_test' is there twice"),
    ("models: [demo]", "prompts are missing"),
    ("prompts: [demo]", "models are missing"),
    (GOOD + "model: [demo]", "unknown entry 'model'; use models"),
    ("models: demo\nprompts: [demo]", "models: expected a list, found 'demo'"),
    ("models: []\nprompts: [demo]", "models: found none"),
    ("models: [3]\nprompts: [demo]", "models: expected names with values, found 3"),
    ("models: [{name: x}]\nprompts: [demo]", "expected the model's name or path, found None"),
    ("models: [{model: demo, dtpe: float16}]\nprompts: [demo]", "unknown entry 'dtpe'; use dtype"),
    (
        "models: [{model: demo, dtype: int8}]\nprompts: [demo]",
        "dtype: unknown 'int8'; use float32, bfloat16 or float16",
    ),
    ("models: [demo, demo]\nprompts: [demo]", "models: 'demo' is there more than once"),
    ("models: [no/such/folder]\nprompts: [demo]", "models.folder: no file or directory"),
    ("models: [demo]\nprompts: [{sources: x}]", "unknown entry 'sources'; use source"),
    ("models: [demo]\nprompts: [demo, demo]", "prompts: 'demo' is there more than once"),
    ("models: [{model: demo, prompts: [dmeo]}]\nprompts: [demo]", "prompts: unknown 'dmeo'; the study has demo"),
    (GOOD.replace("n_test", "n_tets"), "unknown setting 'n_tets'; use n_test"),
    (GOOD.replace("n_train", "ntrain"), "settings 'few'.selection: unknown setting 'ntrain'; use n_train"),
    (GOOD.replace("n_test: 2", "n_test: 0"), "settings 'few': n_test: must be at least 1, found 0"),
    (GOOD.replace("n_test: 2", "n_test: two"), "n_test: expected a whole number, found the text 'two'"),
    (GOOD.replace("n_test: 2", "selct: cosmic"), "unknown setting 'selct'"),
    (GOOD.replace("n_test: 2", "select: magic"), "select: unknown 'magic'; use cosmic or refusal-tokens"),
    (GOOD.replace("n_test: 2", "chat: brief"), "settings 'few'.chat: expected names with values, found 'brief'"),
    (GOOD.replace("max_kl", "min_induce"), "unknown setting 'min_induce'"),
    (GOOD.replace("max_kl: 10.0", "mode: cubic"), "mode: unknown 'cubic'"),
    (GOOD.replace("name: few, ", ""), "has no name"),
    (GOOD + "seeds: [0, 0]", "seeds: 0 is there more than once"),
    (GOOD + "seeds: [-1]", "seed: must be from 0"),
    (GOOD + "seeds: [x]", "seeds: expected a list of whole numbers"),
    (GOOD + "alpha: [1, .inf]", "alphas: expected a finite number"),
    (GOOD.replace("n_test: 2", "seed: 1") + "seeds: [0]", "seed is given here and in the list of seeds"),
    (GOOD.replace("max_kl: 10.0", "alpha: 2.0") + "alpha: [1]", "alpha is given here and in the list of alpha"),
    (
        GOOD.replace("[demo]\nprompts", "[{model: demo, published: [{measure: leyer, value: 1, source: a}]}]\nprompts"),
        "unknown 'leyer'",
    ),
    (
        GOOD.replace("[demo]\nprompts", "[{model: demo, published: [{measure: layer, value: 1}]}]\nprompts"),
        "missing 1 required",
    ),
    (
        GOOD.replace(
            "[demo]\nprompts", '[{model: demo, published: [{measure: layer, value: 1, source: " "}]}]\nprompts'
        ),
        "found no source",
    ),
    ("models: [!!python/object/apply:os.system [true]]\nprompts: [demo]", "is no YAML"),
    ("models: [demo]\nprompts: [demo]\nsettings: [{? [1] : 2}]", "is no YAML"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_what_cannot_be_meant_is_refused_in_one_line(written, text, message):
    with pytest.raises(CosmicError, match=re.escape(message)) as caught:
        read_study(written(text))
    assert "\n" not in str(caught.value) and "study" in str(caught.value)


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "a.yaml", tmp_path / "none.yaml", tmp_path):
        with pytest.raises(CosmicError, match="give a YAML file"):
            read_study(path)


def test_the_same_run_twice_is_refused(written, tmp_path, command):
    twice = GOOD + f"  - {FEW.replace('few', 'again')}\n"
    code, _, err = command("study", written(twice), "--out", tmp_path / "out")
    assert code == 2 and "is the same run as another one" in err and "Traceback" not in err


def test_the_command(written, tmp_path, command):
    path = written(GOOD.replace("[demo]\nprompts", "[demo, {model: broken, settings: {n_test: 1}}]\nprompts"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    code, said, _ = command("study", path, "--list", "--out", tmp_path / "out")
    assert code == 0 and said.splitlines()[1:] == ["demo, demo, few", "broken, demo, few"]
    assert not (tmp_path / "out").exists()
    code, said, err = command("study", path, "--out", tmp_path / "out")
    assert code == 1 and not err
    assert re.search(r"^\[1/2\] demo, demo, few: layer \d, position -1; [\d.]+ s$", said, re.MULTILINE)
    assert re.search(r"^\[2/2\] broken, demo, few: FAILED: model: could not load", said, re.MULTILINE)
    assert "1 of 2 runs finished" in said and f"open {tmp_path / 'out' / 'study.html'}" in said
    page = (tmp_path / "out" / "study.html").read_text()
    assert f"cosmic-tl study {path}" in page
    shutil.rmtree(tmp_path / "broken")
    path.write_text(GOOD)
    code, said, _ = command("study", path, "--out", tmp_path / "out")
    assert code == 0 and "[1/1] demo, demo, few: finished before" in said and "1 of 1 runs finished" in said
    assert pd.read_csv(tmp_path / "out" / "study.csv").problem.isna().all()


@pytest.mark.parametrize("words", [["study", "none.yaml"], ["study"], ["study", "x.yaml", "--outt", "y"]])
def test_bad_commands_are_one_line(command, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    code, said, err = command(*words)
    assert code == 2 and not said and len(err.splitlines()) == 1
    assert not list(Path(tmp_path).iterdir())
