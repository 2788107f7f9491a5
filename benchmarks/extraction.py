"""Means at every layer and position against a bare Hugging Face forward pass over the same batches.

python -m benchmarks.extraction

Prints the ratio of the times, and how much the peak memory grows from 100 to 10 000 prompts.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch
from transformers import AutoModelForCausalLM

from cosmic_tl import load_model, load_prompts, mean_activations, post_instruction_positions
from cosmic_tl.chat import batches, tokenize
from cosmic_tl.models import demo_path


def prompts(n: int) -> list[str]:
    texts = [p for split in load_prompts("demo").positive.values() for p in split]
    return (texts * (n // len(texts) + 1))[:n]


def peak_memory(n: int) -> float:
    """Peak resident memory in MB of a fresh process that takes the means of `n` prompts."""
    code = f"import benchmarks.extraction as b; b.measure_means({n}); print(b.max_rss())"
    return float(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1]
    )


def max_rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_means(n: int) -> float:
    model = load_model("demo", device="cpu")
    positions = post_instruction_positions(model)
    texts = prompts(n)
    mean_activations(model, texts[:64], positions, batch_size=64)
    started = time.perf_counter()
    mean_activations(model, texts, positions, batch_size=64)
    return time.perf_counter() - started


def measure_bare(n: int) -> float:
    bridge = load_model("demo", device="cpu")
    model = AutoModelForCausalLM.from_pretrained(demo_path(), dtype=torch.float32, attn_implementation="eager").eval()
    texts = prompts(n)
    with torch.inference_mode():
        started = time.perf_counter()
        for batch in batches(bridge, tokenize(bridge, texts), 64):
            model.model(batch.ids, attention_mask=batch.mask, use_cache=False)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    ours, bare = [], []
    for _ in range(args.rounds):
        bare.append(measure_bare(2000))
        ours.append(measure_means(2000))
    print(f"time, means of 2000 prompts over bare forward passes: {min(ours) / min(bare):.2f}")
    small, large = peak_memory(100), peak_memory(10_000)
    print(f"peak memory, 10 000 prompts over 100: {large / small:.3f}")


if __name__ == "__main__":
    main()
