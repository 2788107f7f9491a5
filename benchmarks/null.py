"""How often the null test finds a planted direction, and how often one that is not there.

python -m benchmarks.null [--sets N] [--figure FILE.png]

A tiny random Llama, in which the embeddings of two words differ by a known direction of some length; positive prompts contain
the one word, negative ones the other, among random words. At length 0 both sides come from one distribution. Each data set has
prompts of its own.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.express as px
import torch

from benchmarks.results import record
from cosmic_tl import CosmicOptions, load_model, load_prompts
from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.figures import save_figure
from cosmic_tl.figures.style import finish
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.selection import measure_null
from cosmic_tl.selection.null import SHUFFLED
from tests.tiny import save

LENGTHS = (0.0, 2.0)
"""Of the planted direction, in units of an embedding's mean length."""
WORDS = ("pizza", "dog", "shirt", "river", "poem", "plant", "horse", "table", "carrot", "candle", "hotel", "lake")
MARKERS = ("bake", "paint")
N_TRAIN, N_VAL, N = 64, 32, 19
LEVEL = 0.05
OPTIONS = CosmicOptions(
    n_train=N_TRAIN, n_val=N_VAL, n_positions=2, evaluation_layers=(2,), max_kl=1e9, max_layer_share=1.0
)


def planted(model: TransformerBridge, length: float) -> None:
    """Make the markers' embeddings differ by a direction of that length, and by nothing else."""
    weights = model.original_model.get_input_embeddings().weight
    ids = [model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in MARKERS]
    if len(ids[0]) != len(ids[1]):
        raise SystemExit(f"MARKERS: they have {len(ids[0])} and {len(ids[1])} tokens; choose words of as many")
    direction = torch.randn(weights.shape[1], generator=torch.Generator().manual_seed(0))
    shift = length * weights.norm(dim=1).mean() * direction / direction.norm()
    with torch.no_grad():
        for first, second in zip(*ids, strict=True):
            weights[first] = weights[second] + shift


def data_set(seed: int) -> ContrastSet:
    """Prompts of some random words, with one of the markers."""
    rng = np.random.default_rng(seed)

    def side(marker: str, n: int) -> list[str]:
        found = [list(rng.choice(WORDS, 3)) for _ in range(n)]
        return [" ".join(["Say", *words, marker, marker, marker]) for words in found]

    splits = {"train": N_TRAIN, "val": N_VAL, "test": 1}
    positive, negative = ({split: side(marker, n) for split, n in splits.items()} for marker in MARKERS)
    return load_prompts(positive=positive, negative=negative, shuffle=False)


def p_values(length: float, sets: int, folder: Path) -> list[float]:
    """Of the sum of both scores against shuffled labels, one per data set."""
    model = load_model(folder, device="cpu")
    planted(model, length)
    found = []
    for seed in range(sets):
        table = measure_null(model, data_set(seed), OPTIONS, n=N).table
        found.append(float(table[(table.measure == "score") & (table.null == SHUFFLED)].p_value.iloc[0]))
    return found


def draw(found: dict[float, Sequence[float]], path: Path) -> None:
    """How often p is at most some level."""
    levels = np.arange(1, N + 2) / (N + 1)
    rows = [
        {"p at most": level, "share of data sets": np.mean(np.array(p) <= level + 1e-9), "length": f"{length:g}"}
        for length, p in found.items()
        for level in levels
    ]
    figure = px.line(pd.DataFrame(rows), x="p at most", y="share of data sets", color="length", markers=True)
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": "grey"}, showlegend=False)
    figure.update_layout(legend_title="")
    n = len(next(iter(found.values())))
    save_figure(
        finish(
            figure, "The null test on planted truth", f"{n} data sets per length of the direction; dotted: by chance"
        ),
        path,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=400, help="data sets per length")
    parser.add_argument("--figure", type=Path, help="a picture to write")
    parser.add_argument("--no-record", action="store_true", help="print only; leave RESULTS.md as it is")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = save(Path(name), "llama")
        found = {length: p_values(length, args.sets, folder) for length in LENGTHS}
    values = {
        f"share with p ≤ {LEVEL:g}, length {length:g}": float(np.mean(np.array(p) <= LEVEL + 1e-9))
        for length, p in found.items()
    }
    values["data sets per length"] = float(args.sets)
    print(values)
    if args.figure:
        draw(found, args.figure)
    if not args.no_record:
        record("null", values)


if __name__ == "__main__":
    main()
