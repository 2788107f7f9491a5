"""`cosmic-tl evaluate`: what it writes, how it goes on, and what it refuses."""

import json
import shutil
from functools import partial

import pandas as pd
import pytest
import torch

from cosmic_tl import Direction, load_model, orthogonalize_weights
from cosmic_tl.experiments import ModelComparison, two_models as library
from cosmic_tl.export import save_checkpoint
from cosmic_tl.runs.evaluation_folder import FILES

QUICK = ["--n-test", "4", "--max-new-tokens", "8", "--device", "cpu"]


@pytest.fixture
def evaluate(command):
    """Runs this command; gives exit code, output and errors."""
    return partial(command, "evaluate")


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """An orthogonalized demo, and the direction that it lost, in files."""
    folder = tmp_path_factory.mktemp("evaluate")
    model = load_model("demo", device="cpu")
    direction = Direction(torch.randn(128, generator=torch.Generator().manual_seed(0)), None, layer=3, position=-1)
    direction.save(folder / "direction.safetensors")
    save_checkpoint(model, folder / "model", orthogonalize_weights(model, direction))
    return folder


def files(out):
    """What is written, by name; safetensors aside, whose bytes may order differently."""
    return {name: (out / name).read_bytes() for name in FILES if (out / name).exists() and "safetensors" not in name}


def test_everything_is_written_and_a_stopped_command_goes_on(evaluate, edited, tmp_path, monkeypatch):
    texts = tmp_path / "texts.txt"
    texts.write_text("It is fine to bake a pie.\nIt is wrong to rob a bank clerk.\n")
    args = ["demo", edited / "model", *QUICK, "--texts", texts, "--direction", edited / "direction.safetensors"]
    out = tmp_path / "out"
    code, text, error = evaluate(*args, "--out", out)
    assert code == 0, error
    assert "in one direction" in text and "median cosine with the given direction 1.000" in text
    assert set(files(out)) == {"summary.json", "evaluation.html", "evaluation.csv", "weights.csv", "completions.jsonl"}
    assert Direction.load(out / "removed.safetensors").vector.shape == (128,)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["weights"]["is_one"] and summary["measures"][0]["n"] == 4
    assert len(pd.read_csv(out / "evaluation.csv")) == len(summary["measures"]) == 10
    loaded = ModelComparison.load(out / "comparison.safetensors")
    assert loaded.said() == summary["said"] and loaded.edited == str(edited / "model")

    def stops(*args, **options):
        raise KeyboardInterrupt

    whole, stopped = library.model_divergences, tmp_path / "stopped"
    monkeypatch.setattr(library, "model_divergences", stops)
    assert evaluate(*args, "--out", stopped)[0] == 130
    assert not files(stopped)
    monkeypatch.setattr(library, "model_divergences", whole)
    monkeypatch.setattr(library, "complete", stops)  # nothing is completed again
    code, _, error = evaluate(*args, "--out", stopped)
    assert code == 0, error
    ours, theirs = files(out), files(stopped)
    assert ours.keys() == theirs.keys()
    for name in set(ours) - {"evaluation.html"}:  # which shows the command
        assert ours[name] == theirs[name], name
    code, _, error = evaluate("demo", "demo", *QUICK, "--out", out)
    assert code == 2 and "holds a comparison with other settings (edited" in error
    monkeypatch.undo()


def test_completions_in_the_page_are_text(evaluate, tmp_path, monkeypatch):
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    monkeypatch.setattr(library, "complete", lambda model, prompts, *args, **options: [hostile] * len(prompts))
    out = tmp_path / "out"
    code, text, error = evaluate("demo", "demo", *QUICK, "--out", out)
    assert code == 0, error
    page = (out / "evaluation.html").read_text()
    assert "alert(1)" in page and hostile not in page and "<img src=x" not in page
    assert "no difference: all 99 parameters are equal" in text and "no difference" in page
    assert not (out / "removed.safetensors").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["demo"], "edited: needs a value"),
        (["demo", "no/such/model"], "edited: no file or directory 'no/such/model'"),
        (["no/such/model", "demo"], "base: no file or directory 'no/such/model'"),
        (["demo", "demo", "--texts", "nowhere.txt"], "texts: no file 'nowhere.txt'"),
        (["demo", "demo", "--direction", "nowhere"], "direction: no file 'nowhere'"),
        (["demo", "demo", "--run", "nowhere"], "run: 'nowhere' holds no run"),
        (["demo", "demo", "--n-test", "0"], "n_test: must be at least 1"),
        (["demo", "demo", "--limit", "0"], "limit: must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(evaluate, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    code, _, error = evaluate(*args)
    assert code == 2 and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_another_chat_template_is_told_and_the_bases_can_be_taken(evaluate, edited, tmp_path):
    shutil.copytree(edited / "model", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    args = ["demo", tmp_path / "model", *QUICK, "--out", tmp_path / "out"]
    code, _, error = evaluate(*args)
    assert code == 2 and "edited: its tokenizer or chat template gives" in error and error.count("\n") == 1
    code, text, error = evaluate(*args, "--base-tokenizer", "--overwrite")
    assert code == 0 and "in one direction" in text, error


def test_foreign_folders_are_left_alone(evaluate, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    code, _, error = evaluate("demo", "demo", *QUICK, "--out", tmp_path, "--overwrite")
    assert code == 2 and "is not empty and holds no comparison" in error
    code, _, error = evaluate("demo", "demo", *QUICK, "--out", tmp_path / "mine.txt")
    assert code == 2 and "is a file" in error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_adapter_is_applied_to_the_base(evaluate, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    from cosmic_tl.model.load import demo_path

    plain = AutoModelForCausalLM.from_pretrained(demo_path(), dtype=torch.float32)
    wrapped = peft.get_peft_model(plain, peft.LoraConfig(r=1, target_modules=["down_proj"], init_lora_weights=False))
    wrapped.save_pretrained(tmp_path / "lora")
    code, text, error = evaluate("demo", tmp_path / "lora", *QUICK, "--out", tmp_path / "out")
    assert code == 0, error
    assert "8 of 17 matrices that write to the stream differ" in text
    weights = pd.read_csv(tmp_path / "out" / "weights.csv")
    assert (weights.share[weights.change > 0] > 0.999).all()
