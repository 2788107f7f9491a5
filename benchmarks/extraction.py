"""Means at every layer and position, against a bare Hugging Face forward pass over the same batches.

python -m benchmarks.extraction

Prints the ratio of the times, and how much the peak memory grows from 100 to 10 000 prompts (on the demo model).
"""

import resource
import subprocess
import sys

import torch

from benchmarks.shapes import CHAT, Pair, alternate, prompts
from cosmic_tl import load_model, load_prompts, mean_activations, post_instruction_positions
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import tokenize

N = 160


def peak_memory(n: int) -> float:
    """Peak resident memory in MB of a fresh process that takes the means of `n` prompts."""
    code = f"import benchmarks.extraction as b; b.means_of_demo({n}); print(b.max_rss())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def max_rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def means_of_demo(n: int) -> None:
    model = load_model("demo", device="cpu")
    texts = [text for split in load_prompts("demo").positive.values() for text in split]
    mean_activations(model, (texts * (n // len(texts) + 1))[:n], batch_size=64)


def measure(rounds: int = 5) -> dict[str, float]:
    pair = Pair("small")
    texts = prompts(pair.bridge, N).side("positive", "train", N)
    positions = post_instruction_positions(pair.bridge, CHAT)

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches(pair.bridge, tokenize(pair.bridge, texts, CHAT), 32):
                pair.plain.model(batch.ids, attention_mask=batch.mask, use_cache=False)

    ratio = alternate(
        lambda: mean_activations(pair.bridge, texts, positions=positions, chat=CHAT, batch_size=32), bare, rounds
    )
    return {"time over a bare pass": ratio, "peak memory, 10 000 over 100": peak_memory(10_000) / peak_memory(100)}


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{name}: {value:.3f}")
