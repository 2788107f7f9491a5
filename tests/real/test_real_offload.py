"""A real model whose weights stay on disk: the same scores, and less private memory than the weights take."""

import json
import subprocess
import sys

import pytest

SELECTION = """
import json, sys, threading, time
from pathlib import Path
from cosmic_tl import ContrastSet, CosmicOptions, load_model, select_cosmic
from transformers import AutoModelForCausalLM  # so that what imports take counts before

def anonymous():  # in bytes: what is no part of a file
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

path, folder, positive, negative = json.loads(sys.stdin.read())
most, done = [anonymous()], threading.Event()

def watch():
    while not done.wait(0.02):
        most.append(anonymous())

places = {} if folder is None else {"device_map": {"": "disk"}, "offload_folder": folder}
model = load_model(path, dtype="float32", **(places or {"device": "cpu"}))
threading.Thread(target=watch).start()
sides = [{split: tuple(side) for split in ("train", "val")} for side in (positive, negative)]
options = CosmicOptions(n_train=2, n_val=2, n_positions=1, evaluation_layers=(3,), max_kl=100.0, n_resamples=0)
try:
    table = select_cosmic(model, ContrastSet("few", *sides), options).table
finally:
    done.set()
weights = sum(p.numel() * p.element_size() for p in model.original_model.parameters())
columns = ["layer", "position", "s_comply", "s_refuse", "kl"]
table = table.astype({"kl": float})[columns].fillna(-1).values.tolist()
print(json.dumps({"private": max(most), "weights": weights, "table": table}))
"""


def selected(path, folder, sides):
    asked = json.dumps([str(path), folder, *sides])
    done = subprocess.run([sys.executable, "-c", SELECTION], input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what memory is private")
def test_weights_on_disk_give_the_same_in_less_memory_than_they_take(real_model_path, real_prompts, tmp_path):
    few = [real_prompts.side(side, "train")[:2] for side in ("positive", "negative")]
    away = selected(real_model_path, str(tmp_path), few)
    here = selected(real_model_path, None, few)
    assert here["weights"] == away["weights"]
    assert len(away["table"]) == len(here["table"]) > 3
    for one, other in zip(away["table"], here["table"], strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert any(row[4] >= 0 for row in here["table"])
    assert here["private"] > here["weights"] > away["private"], {**away, "table": None}
