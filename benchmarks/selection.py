"""COSMIC selection against the released procedure, and against the arithmetic that it cannot do without.

python -m benchmarks.selection --json FILE

The plain procedure is written here once, as the papers' programs do it: three full passes a candidate through hooks on the
Hugging Face model, with the logits of every position, all prompts of a side padded to one length. It is timed on a sample
of the candidates, alternating with the whole of ours, and scaled to all. `--full` runs it on all of them and stores their
scores, which ours are then compared with.

"over_floor" is our time over the floor: the multiply-adds of the passes that were made (clean ones once, prefix sharing
included), by the rate at which this machine multiplies matrices of these shapes.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PretrainedConfig, PreTrainedModel

from benchmarks.results import MODES
from benchmarks.shapes import CHAT, SHAPES, Pair, prompts, seconds
from cosmic_tl import CosmicOptions, Selection, mean_activations, post_instruction_positions, select_cosmic
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.directions.difference_in_means import difference_in_means
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.forward import TokenBatch
from cosmic_tl.model.matmul import fast_linear
from cosmic_tl.selection.plan import COSMIC_MEASURES

N, SIDES = 32, ("positive", "negative")
STORED = Path(__file__).with_name("plain_scores.json")
Edit = Callable[[Tensor], Tensor]


class Plain:
    """The released procedure."""

    def __init__(
        self,
        model: PreTrainedModel,
        positive: Sequence[TokenBatch],
        negative: Sequence[TokenBatch],
        layers: list[list[int]],
    ):
        self.model, self.blocks, self.layers = model, model.model.layers, layers
        self.positive, self.negative = positive, negative
        self.clean_positive, _ = self.forward(positive)
        self.clean_negative, self.clean_logits = self.forward(negative)

    @contextmanager
    def edited(self, pre: dict[int, Edit], out: Edit | None) -> Iterator[None]:
        """Edit what enters some blocks, and what attention and MLP of every block give."""
        handles = []
        for number, block in enumerate(self.blocks):
            if number in pre:

                def enter(module: Any, args: Any, kwargs: Any, edit: Edit = pre[number]) -> Any:
                    return (edit(args[0]), *args[1:]), kwargs

                handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
            if out is not None:
                handles.append(block.self_attn.register_forward_hook(lambda m, a, o: (out(o[0]), *o[1:])))
                handles.append(block.mlp.register_forward_hook(lambda m, a, o: out(o)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.inference_mode()
    def forward(
        self, side: Sequence[TokenBatch], pre: dict[int, Edit] | None = None, out: Edit | None = None
    ) -> tuple[Tensor, Tensor]:
        """Each block's output at the last position, and the last logits, of full passes."""
        found = [self._forward(batch, pre, out) for batch in side]
        streams, logits = (torch.cat(some) for some in zip(*found, strict=True))
        return streams, logits

    def _forward(self, batch: TokenBatch, pre: dict[int, Edit] | None, out: Edit | None) -> tuple[Tensor, Tensor]:
        reached: list[Tensor] = []
        handles = [
            block.register_forward_hook(
                lambda m, a, o: reached.append((o[0] if isinstance(o, tuple) else o)[:, -1].double())
            )
            for block in self.blocks
        ]
        try:
            with self.edited(pre or {}, out):
                logits = self.model(batch.ids, attention_mask=batch.mask).logits[:, -1].double()
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(reached, dim=1), logits

    def scores(self, candidates: Candidates, layer: int, position: int, mode: str) -> list[list[float]]:
        """S_comply, S_refuse and KL of one candidate, for each choice of evaluation layers."""
        weight = self.model.lm_head.weight
        r, nu = (t[layer, position].to(weight) for t in (candidates.vectors, candidates.references))
        unit = r / r.norm()

        def ablate(x: Tensor) -> Tensor:
            return x - (x @ unit)[..., None] * unit

        def ace(x: Tensor, alpha: float) -> Tensor:
            return ablate(x) + (nu @ unit) * unit + alpha * r

        if mode == "linear":
            remove: dict[str, Any] = {"pre": dict.fromkeys(range(len(self.blocks)), ablate), "out": ablate}
            induce: dict[str, Any] = {"pre": {layer: lambda x: x + r}}
        else:
            remove = {"pre": {layer: lambda x: ace(x, 0.0)}}
            induce = {"pre": {layer: lambda x: ace(x, 1.0)}}
        comply, _ = self.forward(self.positive, **remove)
        refuse, _ = self.forward(self.negative, **induce)
        _, logits = self.forward(self.negative, **remove)
        p, q = self.clean_logits.softmax(-1), logits.softmax(-1)
        kl = float((p * ((p + 1e-6).log() - (q + 1e-6).log())).sum(-1).mean())
        mean = lambda y, at: y[:, at].mean((0, 1))  # noqa: E731
        return [
            [
                float(cosine_similarity(mean(comply, at), mean(self.clean_negative, at), dim=0)),
                float(cosine_similarity(mean(refuse, at), mean(self.clean_positive, at), dim=0)),
                kl,
            ]
            for at in self.layers
        ]


def matmul_rate(config: PretrainedConfig, device: str, dtype: torch.dtype, tokens: int = 1024) -> float:
    """Multiply-adds per second of a block's matrix products, by the library's routine, each on weights of its own."""
    d, wide = config.hidden_size, config.intermediate_size
    narrow = d * config.num_key_value_heads // config.num_attention_heads
    sizes = [(d, d), (d, narrow), (d, narrow), (d, d), (d, wide), (d, wide), (wide, d)] * 6
    weights = [torch.randn(out, into, device=device, dtype=dtype) for into, out in sizes]
    inputs = {into: torch.randn(tokens, into, device=device, dtype=dtype) for into in (d, wide)}

    def work() -> None:
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    with torch.inference_mode(), fast_linear():
        work()
        started, times = time.perf_counter(), 0
        while time.perf_counter() - started < 2:
            work()
            times += 1
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        took = time.perf_counter() - started
    return times * tokens * sum(into * out for into, out in sizes) / took


def done_macs(selection: Selection) -> int:
    """Multiply-adds of the passes that a selection made, each clean one once."""
    cells = selection.plan.cells
    table = selection.table.set_index(["layer", "position"])
    made = [
        row.macs
        for row in cells.itertuples()
        if row.status != "known" and row.measure not in table.loc[(row.layer, row.position), "not_needed"]
    ]
    return selection.plan.clean_macs + sum(made)


def compare(selection: Selection, plain: dict[tuple[int, int], list[float]]) -> float:
    """Largest difference of any score that was computed."""
    largest = 0.0
    for row in selection.table.itertuples():
        for measure, value in zip(COSMIC_MEASURES, plain.get((row.layer, row.position), []), strict=False):
            if measure not in row.not_needed and getattr(row, measure) == getattr(row, measure):
                largest = max(largest, abs(getattr(row, measure) - value))
    return largest


def plain_choice(scores: dict[tuple[int, int], list[float]], n_layers: int, defined: set[tuple[int, int]]) -> list[int]:
    """The candidate that the plain procedure chooses: filters and argmax, written out."""
    positions = sorted({position for _, position in scores})
    medians = []
    for which in (0, 1):
        peaks = sorted(
            max((layer for layer in range(n_layers) if (layer, p) in defined), key=lambda a: scores[a, p][which])
            for p in positions[:-1]
        )
        medians.append(peaks[(len(peaks) - 1) // 2])
    kept = [
        cell
        for cell in sorted(defined, key=lambda cell: (cell[1], cell[0]))
        if cell[0] < 0.8 * n_layers
        and scores[cell][2] <= 0.1
        and not (cell[1] == -1 and cell[0] > medians[0] and cell[0] > medians[1])
    ]
    return list(max(kept, key=lambda cell: scores[cell][0] + scores[cell][1]))


def measure(
    shape: str = "small", device: str = "cpu", rounds: int = 2, sample: int = 2, full: bool = False
) -> dict[str, dict[str, dict[str, float]]]:
    """Ratio, largest score difference and time over the floor, by evaluation layers and mode."""
    pair = Pair(shape, device)
    bridge, contrast = pair.bridge, prompts(pair.bridge, N)
    n_layers = int(bridge.cfg.n_layers)
    at = {"mid": [int(0.6 * n_layers)], "last": [n_layers - 1]}
    positions = post_instruction_positions(bridge, CHAT)
    means = [
        mean_activations(bridge, contrast.side(side, "train", N), positions=positions, chat=CHAT) for side in SIDES
    ]
    candidates = difference_in_means(*means)
    cells = [(layer, position) for layer in range(n_layers) for position in positions.indices]
    defined = {cell for cell in cells if candidates.vectors[cell].any()}
    batch_of = lambda side: list(batches(bridge, tokenize(bridge, contrast.side(side, "val", N), CHAT), N))  # noqa: E731
    plain = Plain(pair.plain, batch_of("positive"), batch_of("negative"), list(at.values()))

    key = f"{shape} {device}"
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    if full:
        stored[key] = {
            mode: {f"{layer},{position}": plain.scores(candidates, layer, position, mode) for layer, position in cells}
            for mode in MODES
        }
        STORED.write_text(json.dumps(stored) + "\n")

    chance = random.Random(0)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for where, (name, layers) in enumerate(at.items()):
        results[name] = {}
        for mode in MODES:
            options = CosmicOptions(mode=mode, evaluation_layers=tuple(layers), n_train=N, n_val=N, n_resamples=0)
            ours = partial(select_cosmic, bridge, contrast, options, chat=CHAT, means=(means[0], means[1]))
            selection = ours()
            must = done_macs(selection)
            ratios, floors, differences = [], [], []
            for _ in range(rounds):
                found: dict[tuple[int, int], list[float]] = {}
                chosen = chance.sample(sorted(defined), sample)

                def plainly(found: Any = found, chosen: Any = chosen, mode: str = mode, where: int = where) -> None:
                    for cell in chosen:
                        found[cell] = plain.scores(candidates, *cell, mode)[where]

                plain_time = seconds(plainly, device) / sample * len(cells)
                before = matmul_rate(SHAPES[shape], device, pair.dtype)
                took = seconds(ours, device)
                rate = (before + matmul_rate(SHAPES[shape], device, pair.dtype)) / 2
                ratios.append(plain_time / took)
                floors.append(took / (must / rate))
                differences.append(compare(selection, found))
            result = {
                "ratio": median(ratios),
                "max_score_difference": max(differences),
                "over_floor": median(floors),
                "fewer_macs": selection.plan.released_macs / must,
            }
            if key in stored:
                all_of = {tuple(map(int, cell.split(","))): some[where] for cell, some in stored[key][mode].items()}
                result["max_score_difference"] = max(result["max_score_difference"], compare(selection, all_of))
                same = plain_choice(all_of, n_layers, defined) == [
                    selection.direction.layer,
                    selection.direction.position,
                ]
                result["same_choice"] = same
            results[name][mode] = result
            print(name, mode, json.dumps(result), flush=True)
    return results


def measure_flat() -> dict[str, float]:
    """`measure`, one level deep."""
    found = measure()
    return {
        f"{where} {mode} {name}": value
        for where, modes in found.items()
        for mode, some in modes.items()
        for name, value in some.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sample", type=int, default=2, help="candidates a round of the plain procedure")
    parser.add_argument(
        "--full", action="store_true", help="run the plain procedure on all candidates and store scores"
    )
    args = parser.parse_args()
    results = measure(args.shape, args.device, args.rounds, args.sample, args.full)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
