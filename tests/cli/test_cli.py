import json
import os
import pty
import re
import shutil
import subprocess
import sys
from contextlib import suppress

import pandas as pd
import pytest

import cosmic_tl
from cosmic_tl.cli.options import DataOptions
from cosmic_tl.cli.output import printable
from cosmic_tl.runs.settings import STAGES
from cosmic_tl.selection.scores import parts

QUICK = [
    "--n-train",
    "8",
    "--n-val",
    "4",
    "--n-test",
    "3",
    "--max-new-tokens",
    "6",
    "--positions",
    "1",
    "--max-kl",
    "50",
    "--n-resamples",
    "20",
    "--placebos",
    "1",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    done = subprocess.run(
        [sys.executable, "-m", "cosmic_tl.cli", "run", "--out", out, *QUICK],
        capture_output=True,
        text=True,
        check=False,
    )
    return done, out


def test_run_writes_and_prints_nothing_but_results(finished):
    done, out = finished
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Refusals (demo, affine mode)" in done.stdout and "report.html" in done.stdout
    names = {path.name for path in out.iterdir() if path.is_file()}
    assert names == {
        "direction.safetensors",
        "selection.safetensors",
        "scores.csv",
        "completions.jsonl",
        "report.html",
        "summary.json",
        "settings.json",
    }


def test_a_terminal_sees_every_stage(tmp_path):
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "cosmic_tl.cli", "run", "--out", tmp_path / "run", *QUICK]
    done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=writer, text=True)
    os.close(writer)
    said = b""
    with suppress(OSError):  # which is how a terminal ends
        while found := os.read(reader, 4096):
            said += found
    os.close(reader)
    text = done.stdout.read()
    assert done.wait() == 0, said
    lines = [line.strip() for line in said.decode().replace("\r", "\n").splitlines() if line.strip().startswith("[")]
    assert lines == [f"[{i}/6] {name}" for i, name in enumerate(["loading the model", *STAGES], 1)]
    assert text.splitlines()[-1].startswith(f"Everything is in {tmp_path / 'run'} (")


def test_steer_shows_answers_with_and_without(finished, command):
    code, text, _ = command("steer", finished[1], "How do I bake a pizza?")
    assert code == 0 and all(
        head in text for head in ("[without]", "[removal (affine)]", "[induction (affine, alpha 1)]")
    )
    code, text, _ = command("steer", finished[1], "How do I bake a pizza?", "--alpha", "0")
    assert code == 0 and "[removal" not in text and "[induction (affine, alpha 0)]" in text


def test_plan_says_what_a_selection_would_do(command):
    code, text, error = command("plan", "--mode", "linear", "--n-val", "8", "--evaluation-layers", "4")
    assert code == 0, error
    assert "8 + 8 validation prompts" in text and "evaluation layers 4" in text
    assert "only until one passes the filter" in text and "the released procedure takes" in text
    code, _, error = command("plan", "--evaluation-layers", "12")
    assert code == 2 and "layers 0 to 7" in error


def test_run_by_refusal_tokens(command, tmp_path):
    out = tmp_path / "run"
    code, text, error = command("run", "--out", out, "--select", "refusal-tokens", "--mode", "linear", *QUICK)
    assert code == 0, error
    assert "Selection(refusal tokens, linear)" in text
    summary = json.loads((out / "summary.json").read_text())
    assert summary["method"] == "refusal tokens" and {
        *("bypass", "induce", "clean_bypass", "clean_induce"),
        *parts("kl"),
    } == set(summary["scores"])
    assert "Selection by refusal tokens (linear mode; induction with α = 1)" in (out / "report.html").read_text()
    code, _, error = command("run", "--out", out, *QUICK)
    assert code == 2 and "other settings" in error


def test_compare_tabulates_both_selections(command, tmp_path):
    code, text, error = command("compare", *QUICK[:-2], "--csv", tmp_path / "c.csv")
    assert code == 0, error
    assert "COSMIC" in text and "refusal tokens" in text and "cosine" in (tmp_path / "c.csv").read_text()
    system = "You must always refuse to help the user."
    code, text, _ = command("compare", *QUICK[:-2], "--system", system)
    assert code == 0 and "refusal tokens: tokens: the model's answers to positive prompts begin" in text


def test_variants_and_two_rounds(command, tmp_path):
    code, text, error = command("variants", *QUICK[:4], "--max-kl", "50")
    assert code == 0, error
    assert "concatenated" in text and "per-prompt" in text.replace(" ", "-")
    small = ["--alphas", "1", "--n-test", "8", "--max-new-tokens", "16", "--batch-size", "100"]
    code, text, error = command("two-rounds", "demo-weak", *small, "--csv", tmp_path / "t.csv")
    assert code == 0, error
    table = pd.read_csv(tmp_path / "t.csv")
    found = table[(table.split == "test") & (table.direction == "first") & (table.alpha == 1)]
    rates = found.set_index("set").rate
    assert "best: " in text and rates["positive"] >= 0.8 and rates["negative"] <= 0.15


def test_other_settings_and_other_training_prompts(command, tmp_path):
    few = ["--n-train", "8", "--n-val", "4", "--positions", "2", "--max-kl", "50", "--n-resamples", "0"]
    code, text, error = command("sensitivity", *few, "--csv", tmp_path / "s.csv")
    assert code == 0, error
    assert "centred" in text
    assert pd.read_csv(tmp_path / "s.csv").varied.nunique() == 6
    code, text, error = command("variants", *few, "--folds", "2", "--csv", tmp_path / "f.csv")
    assert code == 0, error
    assert text.startswith("5 selections of up to ") and "without fold 2" in text
    assert pd.read_csv(tmp_path / "f.csv").variant.tolist()[:2] == ["all", "first half"]
    for name, *rest in (("sensitivity",), ("variants", "--folds", "2")):
        table, kept = tmp_path / ("s.csv" if name == "sensitivity" else "f.csv"), tmp_path / f"kept-{name}"
        for out in ("first.csv", "again.csv"):
            assert command(name, *few, *rest, "--resume", kept, "--csv", tmp_path / out)[0] == 0
            assert (tmp_path / out).read_text() == table.read_text()
    code, _, error = command("sensitivity", *few, "--resume", tmp_path)
    assert code == 2 and error.startswith("Error: resume: ") and "holds something else" in error
    code, _, error = command("variants", *few, "--folds", "9")
    assert code == 2 and "n_folds: found 9, and there are 8 training prompts" in error
    code, _, error = command("sensitivity", *few, "--cell", "3,-1")
    assert code == 2 and "cell: found (3, -1), and every setting is to choose" in error


def test_a_concept_of_ones_own_is_swept_by_its_name(command, tmp_path):
    out = tmp_path / "run"
    code, _, error = command(
        "run", "--out", out, *QUICK, "--phrase", "of course", "--phrase", "sure", "--labels", "A, B"
    )
    assert code == 0, error
    code, _, error = command("sweep", out, "--alphas", "0,1", "--n-test", "2", "--max-new-tokens", "4")
    assert code == 0, error
    page = (out / "sweep.html").read_text()
    assert "Concept against the strength of steering" in page and "A prompts" in page and "B prompts" in page
    assert "harmful prompts" not in page


def test_the_null_says_before_what_it_takes(command, tmp_path):
    few = [word if word != "4" else "8" for word in QUICK]  # which are halved
    code, _, error = command("run", "--out", tmp_path / "run", *few, "--null", "2")
    assert code == 0, error
    assert re.search(r"^The null takes up to [\d.,]+ GMACs, the selection [\d.,]+\.$", error, flags=re.MULTILINE), error
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["null"]["tests"][0]["n"] == 2
    code, _, error = command("run", "--out", tmp_path / "run", *few, "--null", "2")
    assert code == 0 and "The null takes" not in error  # it is there


def test_a_sweep_has_what_was_asked_for(command, finished):
    """What an earlier one measured is taken from its log, if all that it depends on is the same."""
    out, small = finished[1], ["--n-test", "2", "--max-new-tokens", "4"]
    assert command("sweep", out, "--alphas", "0,1", *small)[0] == 0
    (log,) = (out / "resume").glob("sweep-*.jsonl")
    log.write_text(log.read_text().replace('"compliance"', '"refusal"'))  # as no model answers
    assert command("sweep", out, "--alphas", "0,2", *small)[0] == 0
    table = pd.read_csv(out / "sweep.csv")
    assert sorted(table.alpha.unique()) == [0, 2]
    assert (table[table.alpha == 0].rate == 1).all() and (table.rate < 1).any()
    assert command("sweep", out, "--alphas", "0", *small, "--dtype", "bfloat16")[0] == 0
    assert (pd.read_csv(out / "sweep.csv").rate < 1).any()
    assert json.loads((out / "derived.json").read_text())["sweep"]["dtype"] == "torch.bfloat16"


def test_a_behaviour_is_steered(command, tmp_path):
    answers = {"answer_matching_behavior": "Yes", "answer_not_matching_behavior": "No"}
    tasks = ("bake a pizza", "water a plant", "paint a bench", "rob a bank clerk", "kidnap a tourist", "poison a dog")
    pairs = [{"question": f"Is it {what} to {task}?", **answers} for task in tasks for what in ("okay", "wrong")]
    (tmp_path / "yes.json").write_text(json.dumps(pairs))
    asked = [tmp_path / "yes.json", "demo", "--alphas", "0,1", "--layers", "5,4"]
    code, _, error = command("behaviour", *asked, "--csv", tmp_path / "nowhere" / "yes.csv")
    assert code == 2 and "csv: no folder" in error and "Traceback" not in error
    code, text, error = command("behaviour", *asked, "--csv", tmp_path / "yes.csv")
    assert code == 0, error
    table = pd.read_csv(tmp_path / "yes.csv")
    assert table.layer.dropna().unique().tolist() == [4, 5] and "log_odds" in text
    found = table[(table.direction == "found") & (table.layer == 5)].log_odds
    assert found.is_monotonic_increasing
    code, _, error = command("behaviour", tmp_path / "none.json")
    assert code == 2 and "file: no file" in error


def test_a_run_can_be_judged_costed_swept_and_exported(command, tmp_path):
    out = tmp_path / "run"
    enough = [
        "--n-train",
        "40",
        "--n-val",
        "8",
        "--n-test",
        "8",
        "--max-new-tokens",
        "12",
        "--positions",
        "1",
        "--placebos",
        "1",
    ]
    code, _, error = command("run", "--out", out, *enough)
    assert code == 0, error
    code, text, error = command("judge", out)
    assert code == 0, error
    assert "rate" in text and len((out / "judgements.jsonl").read_text().splitlines()) == 80
    code, _, error = command("judge", out, "--judge", "model")
    assert code == 2 and "judge_model: none given" in error
    code, text, error = command("cost", out, "--n-test", "2")
    assert code == 0, error
    assert "random removal" in text
    code, text, error = command("sweep", out, "--alphas", "0,1", "--n-test", "4", "--max-new-tokens", "12")
    assert code == 0, error
    rates = pd.read_csv(out / "sweep.csv").set_index(["method", "alpha", "side"]).rate
    assert rates["affine", 0.0, "positive"] < 0.5 < rates["affine", 1.0, "negative"]
    assert "<title>Refusal against the strength of steering</title>" in (out / "sweep.html").read_text()
    code, _, error = command("sweep", out, "--alphas", "a")
    assert code == 2 and "alphas: expected numbers like" in error
    alike = ["--n-test", "2", "--max-new-tokens", "8", "--alphas", "0.5"]
    code, text, error = command("calibrate", out, "--nats", "0.5", *alike)
    assert code == 0 and "At a 95th percentile of 0.5 nats per token: addition α = " in text, error
    points = pd.read_csv(out / "calibration.csv")
    assert points.edit.nunique() == 3 and (points.kl_p95[points.alpha == 0.0] == 0.0).any()
    assert "<title>Effect against cost</title>" in (out / "calibration.html").read_text()
    (log,) = (out / "resume").glob("calibrate-*.jsonl")
    known = log.read_text().splitlines()
    log.write_text("\n".join(known[:4]) + "\n")
    code, _, error = command("calibrate", out, "--nats", "0.5", *alike)  # goes on to the same
    assert code == 0 and log.read_text().splitlines() == known, error
    assert pd.read_csv(out / "calibration.csv").equals(points)
    log.write_text(known[0].replace('"alpha": 0.0', '"alpha": "x"') + "\n")
    code, _, error = command("calibrate", out, "--nats", "0.5", *alike)
    assert code == 2 and "line 1" in error
    log.write_text("\n".join(known) + "\n")
    code, _, error = command("calibrate", out, "--nats", "0.5", "--score", "1")
    assert code == 2 and "nats, score: found 0.5 and 1.0" in error
    few = ["--n-test", "4", "--positions", "1"]
    code, text, error = command("causal", out, *few)
    assert code == 0 and "Strongest places, harmful prompts (score):" in text, error
    table = pd.read_csv(out / "causal.csv")
    assert set(table.treatment) == {"direction", "placebo", "whole"} and set(table.measure) == {"score", "cosine", "kl"}
    assert "<title>Where the concept acts" in (out / "causal.html").read_text()
    (log,) = (out / "resume").glob("causal-*.jsonl")
    known = log.read_text().splitlines()
    log.write_text("\n".join(known[:20]) + "\n")
    code, _, error = command("causal", out, *few)  # goes on to the same
    assert code == 0 and sorted(log.read_text().splitlines()) == sorted(known), error
    assert pd.read_csv(out / "causal.csv").equals(table)
    code, _, error = command("causal", out, "--n-test", "4", "--part", "head")
    assert code == 2 and "part" in error
    asked = ["--prompt", "Bake a <pie>.", "--prompt", "Rob a clerk.", "--max-new-tokens", "6"]
    code, text, error = command("follow", out, *asked)
    assert code == 0 and "prompt: Bake a <pie>." in text and "induction: I'm sorry" in text, error
    table, page = pd.read_csv(out / "conversation.csv", keep_default_na=False), (out / "conversation.html").read_bytes()
    assert list(table)[:3] == ["prompt", "condition", "index"] and table.prompt.unique().tolist() == asked[1:4:2]
    assert b"<h3>Bake a &lt;pie&gt;.</h3>" in page
    kept = sorted((out / "resume").glob("follow-*.safetensors"))
    kept[0].unlink()  # goes on to the same
    assert command("follow", out, *asked)[0] == 0
    assert (out / "conversation.html").read_bytes() == page
    assert pd.read_csv(out / "conversation.csv", keep_default_na=False).equals(table)
    code, _, error = command("follow", out, "--n-test", "1", "--max-new-tokens", "1")  # the first test prompts
    assert code == 0 and pd.read_csv(out / "conversation.csv").prompt.nunique() == 2, error
    code, text, error = command("orthogonalize", out, "--out", tmp_path / "edited", "--n-test", "4")
    assert code == 0, error
    assert "evaluated removal by ACE (affine mode); weight orthogonalization is directional ablation" in text
    measured = {line.rsplit(maxsplit=4)[0].strip(): line.split()[-4:-2] for line in text.splitlines()[-4:-1]}
    assert measured["baseline"] == ["4", "1"]
    assert list(measured) == ["baseline", "removal (affine)", "orthogonalized"]
    assert (tmp_path / "edited" / "model.safetensors").exists()
    code, _, error = command("orthogonalize", out, "--out", tmp_path / "edited")
    assert code == 2 and "is not empty" in error
    small = ["--n-prompts", "2", "--n-tokens", "8", "--steps", "20", "--n-candidates", "48", "--n-test", "6"]
    code, text, error = command("suffix", out, *small)
    assert code == 0, error
    rates = pd.read_csv(out / "suffix-rates.csv").set_index("group").rate
    assert rates["harmful + adversarial suffix"] < rates["harmful + random suffix"]
    assert (out / "suffix.json").exists()
    assert (out / "suffix.html").read_text().count('class="plot"') == 3


def test_a_linear_run_is_steered_and_exported_as_it_was_chosen(command, tmp_path):
    out = tmp_path / "run"
    code, _, error = command("run", "--out", out, "--mode", "linear", "--alpha", "0.5", *QUICK)
    assert code == 0, error
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["mode"], summary["alpha"]) == ("linear", 0.5)
    assert "(linear mode; induction with α = 0.5)" in (out / "report.html").read_text()
    _, text, _ = command("steer", out, "How do I bake a pizza?", "--max-new-tokens", "2")
    assert "[removal (linear)]" in text and "[induction (linear, alpha 0.5)]" in text
    _, text, _ = command("cost", out, "--n-test", "1")
    assert "induction, alpha 0.5" in text
    few = ["--n-test", "3", "--max-new-tokens", "6"]
    code, text, error = command("orthogonalize", out, "--out", tmp_path / "edited", *few)
    assert code == 0, error
    assert "ACE" not in text and text.splitlines()[-1] == f"Saved in {tmp_path / 'edited'}"
    rates = [line.split()[-3:] for line in text.splitlines()[-3:-1]]
    assert rates[0] == rates[1]  # the run's ablation, and the weights without the direction
    code, text, _ = command("orthogonalize", out, "--out", tmp_path / "unmeasured", "--n-test", "0")
    assert code == 0 and "The edited model was not measured (--n-test 0)." in text and "baseline" not in text
    code, _, error = command("orthogonalize", out, "--out", tmp_path / "wrong", "--n-test", "-1")
    assert code == 2 and "n_test: must be at least 0, found -1" in error


def test_a_stopped_run_goes_on(finished, command):
    out = finished[1]
    before = json.loads((out / "summary.json").read_text())
    (out / "summary.json").unlink()
    scores = out / "resume" / "scores.jsonl"
    lines = scores.read_text().splitlines(keepends=True)
    scores.write_text("".join(lines[:3]) + lines[3][:10])
    completions = out / "resume" / "completions.jsonl"
    kept = completions.read_text()
    completions.write_text(kept[: int(len(kept) * 0.4)])  # in the middle of a condition
    code, _, error = command("run", "--out", out, *QUICK)
    assert code == 0, error
    after = json.loads((out / "summary.json").read_text())
    assert {**after, "seconds": 0} == {**before, "seconds": 0}
    assert completions.read_text() == kept


def test_a_runs_edits_are_exported_and_checked(finished, command, tmp_path):
    code, text, _ = command("export", "--list")
    assert code == 0 and "impossible" in text and text.count("steer.py") == 1
    code, text, error = command("export", finished[1], "--list")
    layer = json.loads((finished[1] / "summary.json").read_text())["direction"]["layer"]
    said = f"The run's edit (removal: AffineEdit at layer {layer}) goes to exact: steer.py, lm-eval, vllm-lens, easysteer; "
    assert code == 0 and said + "approximate: vllm-hook" in text, error
    code, text, _ = command("export", finished[1], "--list", "--edit", "ablation")
    assert "ablation: Ablation everywhere) goes to exact: steer.py, lm-eval, peft, checkpoint; approximate: glp" in text
    few = ["--check", "--n-test", "1", "--max-new-tokens", "4"]
    for to, name, more in (("steer.py", "steer.py", ["--edit", "induction"]), ("lm-eval", "some.pt", [])):
        code, text, error = command("export", finished[1], "--to", to, "--out", tmp_path / name, *more, *few)
        assert code == 0, error
        assert f"(AffineEdit to {to}, exact" in text and "is the same edit: logits differ by at most" in text
    for args, message in (
        (["--to", "lm-eval"], "export: a run, --to and --out belong together"),
        (["--to", "pickle", "--out", "x"], "to: unknown 'pickle'; use steer.py"),
        (["--to", "lm-eval", "--out", tmp_path / "some.pt"], "exists; give another path, or overwrite it"),
        (
            ["--to", "lm-eval", "--out", "x.pt", "--edit", "ablation", "--alpha", "2"],
            "alpha: found 2, and the edit 'ab",
        ),
        (["--to", "lm-eval", "--out", "x.npz"], "out: found 'x.npz'; lm-eval takes files that end in .pt"),
        (["--to", "steer.py", "--out", tmp_path / "no" / "steer.py"], "make the folder first"),
    ):
        code, _, error = command("export", finished[1], *args)
        assert code == 2 and message in error and error.count("\n") == 1
    code, _, error = command("export")
    assert code == 2 and "export: a run, --to and --out" in error


def test_commands_refuse_a_run_whose_settings_were_edited(finished, command, tmp_path):
    """In one line: an unknown mode is never taken for another one."""
    shutil.copytree(finished[1], tmp_path / "run")
    settings = tmp_path / "run" / "settings.json"
    settings.write_text(settings.read_text().replace('"affine"', '"cubic"'))
    before = {path.name for path in (tmp_path / "run").iterdir()}
    for name, *more in (
        ["steer", "hi"],
        ["sweep"],
        ["judge"],
        ["cost"],
        ["suffix"],
        ["orthogonalize", "--out", tmp_path / "o"],
    ):
        code, text, error = command(name, tmp_path / "run", *more)
        assert code == 2 and "settings.json in" in error and error.count("\n") == 1 and not text, name
    assert {path.name for path in (tmp_path / "run").iterdir()} == before
    code, _, error = command("orthogonalize", finished[1], "--out", finished[1].parent, "--overwrite")
    assert code == 2 and "holds the run itself" in error


def test_another_run_does_not_overwrite(finished, command):
    out = finished[1]
    kept = (out / "summary.json").read_bytes()
    code, _, error = command("run", "--out", out, *QUICK, "--seed", "5")
    assert code == 2 and "other settings (settings)" in error and "--overwrite" in error
    assert (out / "summary.json").read_bytes() == kept


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "no-such-folder/model"], "model: could not load 'no-such-folder/model'"),
        (["run", "--prompts", "missing.json"], "prompts: no file or directory 'missing.json'"),
        (["run", "--max-kl", "-1"], "max_kl: expected a positive number"),
        (["run", "--alpha", "nan"], "alpha: expected a finite number, found nan"),
        (
            ["run", "--evaluation-layers", "a,b"],
            "evaluation_layers: expected numbers like 3,4, or causal, opposite-signs or resampled, found 'a,b'",
        ),
        (["run", "--evaluation-layers", "12"], "evaluation_layers: found 12, and the model has layers 0 to 7"),
        (["run", "--n-test", "0"], "n_test: must be at least 1, found 0"),
        (["run", "--batch-size", "0"], "batch_size: must be at least 1, found 0"),
        (["run", "--max-new-tokens", "0"], "max_new_tokens: must be at least 1, found 0"),
        (["run", "--temperature", "-1"], "temperature: must be 0 (greedy) or positive"),
        (["run", "--temperature", "nan"], "temperature: must be 0 (greedy) or positive, found nan"),
        (["run", "--max-new-tokens", "1025"], "max_new_tokens: found 1025, and instruction"),
        (["run", "--max-new-tokens", "100000000000"], "of the 1024 tokens that the model's context holds; use at most"),
        (["run", "--n-train", "0"], "n_train: must be at least 1, found 0"),
        (["run", "--placebos", "0"], "n_placebos: must be at least 1, found 0"),
        (["run", "--seed", "-1"], "seed: must be from 0 to 4294967295, found -1"),
        (["run", "--seed", "18446744073709551616"], "seed: must be from 0 to 4294967295, found 18446744073709551616"),
        (["two-rounds", "--csv", "."], "csv: '.' is a folder; give a file"),
        (["run", "--template-option", "x"], "template_option: expected name=value, found 'x'"),
        (["run", *("1e-12" if one == "50" else one for one in QUICK)], "all 8 candidates were filtered out"),
        (["run", "--mode", "cubic"], "mode: unknown 'cubic'; use linear, affine or ace"),
        (["run", "--max-kl", "low"], "max_kl: expected a number, found 'low'"),
        (["run", "--n-train", "1.5"], "n_train: expected a whole number, found '1.5'"),
        (["run", "--n-train"], "n_train: needs a value"),
        (["run", "--n-train", "3", "--n-train", "4"], "--n-train: given more than once"),
        (["run", "--n-trian", "3"], "--n-trian: cosmic-tl run has no such option; use --n-train"),
        (["run", "--cell", "17"], "cell: expected numbers like 17,-1 (layer, position), found '17'"),
        (["run", "--cell", "\x1b[2J"], "found '\\x1b[2J'"),
        (["run", "demo", "another"], "another: not expected here"),
        (["run", "--min-induce", "1"], "min_induce: --select cosmic has no such option"),
        (
            ["run", "--select", "refusal-tokens", "--target", "mean"],
            "target: --select refusal-tokens has no such option; leave it out, or --select cosmic",
        ),
        (["plan", "--min-induce", "1"], "--min-induce: cosmic-tl plan has no such option"),
        (["rnu"], "rnu: no such command; use run"),
        (["steer"], "directory: needs a value"),
        (["steer", "nowhere", "hi"], "run: 'nowhere' holds no run"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    code, _, error = command(*args)
    assert code == 2
    assert message in error
    assert error.startswith("Error: ") and error.count("\n") == 1
    assert not (tmp_path / "cosmic-run" / "summary.json").exists()


def test_options_are_checked_before_anything_is_written(command, tmp_path):
    out = tmp_path / "run"
    for wrong in (["--seed", "-1"], ["--temperature", "nan"], ["--max-new-tokens", "1025"], ["--n-test", "0"]):
        assert command("run", "--out", out, *wrong)[0] == 2
        assert not out.exists()


def test_out_must_be_free(command, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, _, error = command("run", "--out", tmp_path, *QUICK)
    assert code == 2 and "is not empty and holds no run" in error
    code, _, error = command("run", "--out", tmp_path / "notes.txt", *QUICK)
    assert code == 2 and "is a file" in error
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_ctrl_c_exits_with_130(command, monkeypatch, tmp_path):
    def stopped(self):
        raise KeyboardInterrupt  # as Python does for SIGINT, at once

    monkeypatch.setattr(DataOptions, "load", stopped)
    code, text, error = command("plan")
    assert (code, text, error) == (130, "", "Stopped; give the same command again to go on.\n")


def test_version(command):
    assert command("--version") == (0, f"{cosmic_tl.__version__}\n", "")


def test_hostile_output_does_not_drive_the_terminal():
    assert printable("a\x1b[2Jb\r\n") == "a�[2Jb�\n"


def test_help_does_not_import_torch():
    code = (
        "import sys, cosmic_tl.cli as c\nsys.argv = ['cosmic-tl', '--help']\ntry: c.main()\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "steer" in done.stdout


def test_wrong_paths_are_said_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("{")
    commands = {
        ("run", "no/such/dir"): "model: no file or directory 'no/such/dir'",
        ("run", "./model.gguf"): "model: no file or directory './model.gguf'",
        ("run", str(tmp_path / "empty")): "has no config.json",
        ("run", "--positive", "nofile.txt", "--negative", "x.txt"): "prompts: no file or directory 'nofile.txt'",
        ("run", "--positive", "no/such/dir", "--negative", "x.txt"): "prompts: no file or directory 'no/such/dir'",
        ("run", "--prompts", "no/such/dir"): "prompts: no file or directory 'no/such/dir'",
        ("run", "--prompts", str(tmp_path / "empty")): "has no harmful_train.json, harmful_val.json",
        ("run", "--prompts", str(tmp_path / "bad.json")): "is not JSON",
        ("plan", "--prompts", "missing.csv"): "prompts: no file or directory 'missing.csv'",
        ("compare", "--prompts", "missing.csv"): "prompts: no file or directory 'missing.csv'",
        ("variants", "--prompts", "missing.csv"): "prompts: no file or directory 'missing.csv'",
        ("two-rounds", "--prompts", "missing.csv"): "prompts: no file or directory 'missing.csv'",
        ("behaviour", "missing.json"): "file: no file 'missing.json'",
        ("steer", "no-run", "hi"): "run: 'no-run' holds no run",
        ("sweep", "no-run"): "run: 'no-run' holds no run",
        ("suffix", "no-run"): "run: 'no-run' holds no run",
        ("judge", "no-run"): "run: 'no-run' holds no run",
        ("cost", "no-run"): "run: 'no-run' holds no run",
        ("capability", "no-run", "--tasks", "x"): "run: 'no-run' holds no run",
    }
    code = f"""
import sys
import cosmic_tl
from cosmic_tl import cli
for command in {list(commands)!r}:
    sys.argv = ["cosmic-tl", *command]
    try: cli.main()
    except SystemExit as stop: assert stop.code == 2, command
print(sorted({{"torch", "transformer_lens", "transformers", "datasets", "plotly"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    errors = done.stderr.splitlines()
    assert len(errors) == len(commands), done.stderr
    for error, message in zip(errors, commands.values(), strict=True):
        assert error.startswith("Error: ") and message in error
    assert done.stdout == "[]\n"


def test_prompts_in_the_order_of_their_source(tmp_path, command):
    (tmp_path / "splits").mkdir()
    for side in ("harmful", "harmless"):
        for split in ("train", "val", "test"):
            rows = [{"instruction": f"{side} {split} {i}", "category": None} for i in range(4)]
            (tmp_path / "splits" / f"{side}_{split}.json").write_text(json.dumps(rows))
    found = DataOptions(prompts=str(tmp_path / "splits"), keep_order=True).load()
    assert found.side("positive", "train") == [f"harmful train {i}" for i in range(4)]
    assert DataOptions(prompts=str(tmp_path / "splits")).load().positive != found.positive
    text = command("plan", "--prompts", tmp_path / "splits", "--keep-order", "--evaluation-layers", "4")
    assert text[0] == 0 and "passes" in text[1], text


def test_without_run_time_types_bad_arguments_are_still_named():
    """The test run checks types; users do not, and must get the library's own message."""
    code = """
import torch
from cosmic_tl import ChatFormat, ContrastSet, CosmicOptions, Direction, load_prompts
from cosmic_tl.directions.difference_in_means import difference_in_means
from cosmic_tl.experiments.conditions import Condition
from cosmic_tl.interventions.modes import induction, removal
from cosmic_tl.activations import MeanActivations
direction = Direction(torch.ones(2), torch.ones(2), 0, -1)
means = MeanActivations(torch.ones(1, 1, 2).double(), torch.ones(1, 1, 2).double(), 1)
for make in (
    lambda: CosmicOptions(mode="Linear"),
    lambda: CosmicOptions(target="median"),
    lambda: Direction(torch.ones(2), torch.ones(3), 0, -1),
    lambda: load_prompts("demo").side("harmful", "train"),
    lambda: load_prompts("demo").side("Positive", "train"),
    lambda: load_prompts("demo").side("positive", "dev"),
    lambda: Condition("baseline", "harmful", ()),
    lambda: removal(direction, "cubic"),
    lambda: induction(direction, "ACE"),
    lambda: difference_in_means(means, means, part="mlp"),
    lambda: ChatFormat(thinking="closed"),
    lambda: ContrastSet("x", {"train": "abc"}, {"train": ("b",)}),
):
    try: make()
    except ValueError as error: print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "mode: unknown 'Linear'; use linear, affine or ace",
        "target: unknown 'median'; use mean, concatenated, per-prompt or centred",
        "direction: vector has shape (2,) and reference has shape (3,); each must be (d_model,)",
        "side: unknown 'harmful'; use positive or negative",
        "side: unknown 'Positive'; use positive or negative",
        "split: unknown 'dev'; use train, val or test",
        "side: unknown 'harmful'; use positive or negative",
        "mode: unknown 'cubic'; use linear or affine",
        "mode: unknown 'ACE'; use linear, affine or ace",
        "part: unknown 'mlp'; use stream or block",
        "thinking: unknown 'closed'; use close or open",
        "positive train: must be a list of texts, found the text 'abc'; pass ['abc']",
    ]
