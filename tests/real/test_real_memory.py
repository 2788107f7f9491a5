"""A whole selection in a process of its own: what it takes beyond the weights."""

import json
import subprocess
import sys

import pytest

SELECTION = """
import json, resource, sys
from cosmic_tl import ContrastSet, CosmicOptions, load_model, select_cosmic
from transformers import AutoModelForCausalLM  # so that what imports take counts before
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
path, dtype, positive, negative = json.loads(sys.stdin.read())
before = peak()
model = load_model(path, device="cpu", dtype=dtype)
weights = sum(p.numel() * p.element_size() for p in model.original_model.parameters())
sides = [{split: tuple(side) for split in ("train", "val")} for side in (positive, negative)]
options = CosmicOptions(n_train=8, n_val=8, n_positions=2, max_kl=100.0, n_resamples=20)
selection = select_cosmic(model, ContrastSet("few", *sides), options)
print(json.dumps({"rows": len(selection.table), "beyond": peak() - before - weights, "weights": weights}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_selection_takes_little_more_than_the_weights(real_model_path, real_prompts, dtype):
    few = [real_prompts.side(side, "train")[:8] for side in ("positive", "negative")]
    asked = json.dumps([str(real_model_path), dtype, *few])
    done = subprocess.run([sys.executable, "-c", SELECTION], input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] > 0
    assert found["beyond"] <= 1.5e9, found
