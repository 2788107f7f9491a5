"""How time grows with prompts, candidates and layers: the exponent of a power law fitted to each.

python -m benchmarks.scaling

1.0 is proportional. With the number of layers a whole selection grows as its square, since there are as many more
candidates as blocks to run; with as many candidates at the same share of the depth it is proportional again.
"""

import math
from collections.abc import Callable

import torch

from benchmarks.shapes import CHAT, SHAPES, Pair, prompts, seconds
from cosmic_tl import AffineEdit, Direction
from cosmic_tl.engine import Reading, intervened
from cosmic_tl.model.chat import tokenize


def exponent(sizes: list[int], work: Callable[[int], object], rounds: int = 3) -> float:
    """Slope of log time on log size, by least squares over the fastest of some rounds."""
    work(sizes[0])
    times = [min(seconds(lambda size=size: work(size)) for _ in range(rounds)) for size in sizes]
    x, y = [math.log(size) for size in sizes], [math.log(took) for took in times]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def measure() -> dict[str, float]:
    def edits(n: int, layer: int) -> list[AffineEdit]:
        chance = torch.Generator().manual_seed(0)
        return [
            AffineEdit(Direction(torch.randn(512, generator=chance), torch.zeros(512), layer, -1)) for _ in range(n)
        ]

    def run(pair: Pair, n_prompts: int, some: list[AffineEdit]) -> None:
        n_layers = int(pair.bridge.cfg.n_layers)
        rows = tokenize(pair.bridge, prompts(pair.bridge, 64).side("positive", "val", n_prompts), CHAT)
        keep = lambda outcome: outcome.resid_post[n_layers - 1][:, -1]  # noqa: E731
        list(intervened(pair.bridge, rows, some, Reading((n_layers - 1,)), keep))

    pair = Pair("small")
    depths = {}
    for n_layers in (6, 12, 24):
        config = SHAPES["small"].to_dict() | {"num_hidden_layers": n_layers, "layer_types": None}
        SHAPES[f"{n_layers} layers"] = type(SHAPES["small"])(**config)
        depths[n_layers] = Pair(f"{n_layers} layers")
    return {
        "prompts": exponent([16, 32, 64], lambda n: run(pair, n, edits(5, 6))),
        "candidates": exponent([5, 10, 20], lambda n: run(pair, 16, edits(n, 6))),
        "layers, as many candidates": exponent([6, 12, 24], lambda n: run(depths[n], 16, edits(5, n // 2))),
        "layers, candidates at each": exponent(
            [6, 12, 24], lambda n: run(depths[n], 8, [edit for at in range(n) for edit in edits(2, at)]), rounds=2
        ),
    }


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"time against {name}: exponent {value:.2f}")
