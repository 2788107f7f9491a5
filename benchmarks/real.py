"""COSMIC selection on a model of yours against the released procedure.

python -m benchmarks.real MODEL [--prompts PROMPTS] [--device cuda]

The released procedure makes three full passes per candidate, with the logits of every position, through plain hooks on the
plain Hugging Face model, prompts padded to one length in batches of 32. It is timed on a sample of the candidates, half of
it before and half after a whole selection by this library in the same process, and scaled to all of them. The library's
time includes taking the training means, the plain procedure's does not. The sample's scores are compared.

The floor is the time of the multiply-adds of the passes that were made (means and clean passes once, what prompts begin
with once), at the rate at which this machine multiplies matrices of the model's shapes, 1024 tokens at a time.

On two CPU cores a model of half a billion parameters takes about ten minutes.
"""

import argparse
import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.results import MODES, record
from benchmarks.selection import SIDES, Plain, compare, done_macs, matmul_rate
from benchmarks.shapes import seconds
from cosmic_tl import CosmicOptions, load_model, load_prompts, post_instruction_positions, select_cosmic
from cosmic_tl.activations import MeanActivations, mean_of_rows
from cosmic_tl.check.memory import Memory
from cosmic_tl.directions.difference_in_means import difference_in_means
from cosmic_tl.interventions.options import Mode
from cosmic_tl.model.batching import BATCH_SIZE, batches
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.shortcuts import shared_prefix
from cosmic_tl.selection.layer_rules import evaluation_layers, layer_similarity
from cosmic_tl.selection.options import Cell
from cosmic_tl.selection.pass_costs import Tokens, block_costs
from cosmic_tl.selection.scores import undefined

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-3}


def means_macs(model: Any, rows: list[list[int]], n_positions: int) -> int:
    """Multiply-adds of one pass through all blocks."""
    tokens = Tokens.of(rows, shared_prefix(model, rows, n_positions))
    looks = tokens.looked_at + tokens.prefix * (tokens.prefix + 1) // 2
    return sum((tokens.own + tokens.prefix) * block.weights + looks * block.scores for block in block_costs(model))


def measure(
    model: str,
    prompts: str = "demo",
    device: str = "cpu",
    modes: Sequence[Mode] = ("affine", "linear"),
    n_train: int = 128,
    n_val: int = 32,
    sample: int = 4,
    seed: int = 0,
) -> dict[str, float]:
    """Ratio, time over the floor, memory and largest score difference, by mode."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    bridge = load_model(model, device=device, dtype=dtype)
    plain_model: Any = AutoModelForCausalLM.from_pretrained(str(bridge.cfg.model_name), dtype=dtype)
    plain_model = plain_model.to(device).eval()
    contrast, config = load_prompts(prompts), plain_model.config.get_text_config()
    val = [list(batches(bridge, tokenize(bridge, contrast.side(side, "val", n_val)), BATCH_SIZE)) for side in SIDES]
    train = [tokenize(bridge, contrast.side(side, "train", n_train)) for side in SIDES]

    taken: list[MeanActivations] = []
    positions = post_instruction_positions(bridge)
    means_took = seconds(
        lambda: taken.extend(
            mean_of_rows(bridge, rows, n_positions=len(positions), label=side)
            for rows, side in zip(train, SIDES, strict=True)
        ),
        device,
    )
    means, candidates = (taken[0], taken[1]), difference_in_means(taken[0], taken[1])
    n_layers = int(bridge.cfg.n_layers)
    cells = [(layer, position) for layer in range(n_layers) for position in positions.indices]
    early = [cell for cell in cells if cell[0] < CosmicOptions.max_layer_share * n_layers]
    plain = Plain(plain_model, val[0], val[1], [list(evaluation_layers(layer_similarity(*means)))])

    results: dict[str, float] = {"means, seconds": means_took}
    for mode in modes:
        left = random.Random(seed).sample([cell for cell in early if not undefined(candidates, cell)], sample)
        found: dict[Cell, list[float]] = {}

        def plainly(some: Sequence[Cell], mode: Mode = mode, found: dict[Cell, list[float]] = found) -> float:
            """Seconds of the plain procedure, scaled to all candidates."""
            work = lambda: found.update({cell: plain.scores(candidates, *cell, mode)[0] for cell in some})  # noqa: E731
            return seconds(work, device) / len(some) * len(cells)

        rate = matmul_rate(config, device, dtype)
        plain_took = plainly(left[: sample // 2])
        memory, kept = Memory(bridge), []
        options = CosmicOptions(mode=mode, n_train=n_train, n_val=n_val, n_resamples=0)
        took = means_took + seconds(
            lambda options=options, kept=kept: kept.append(select_cosmic(bridge, contrast, options, means=means)),
            device,
        )
        grown, selection = memory.extra(), kept[0]
        winner = (selection.direction.layer, selection.direction.position)
        plain_took = (plain_took + plainly([winner, *left[sample // 2 : -1]])) / 2
        rate = (rate + matmul_rate(config, device, dtype)) / 2
        macs = done_macs(selection) + sum(means_macs(bridge, rows, len(positions)) for rows in train)
        some = {
            "ratio": plain_took / took,
            "over_floor": took / (macs / rate),
            "max_score_difference": compare(selection, found),
            "peak memory over the weights, GB": grown,
            "seconds": took,
            "seconds, plain": plain_took,
            "GMACs per second": rate / 1e9,
            "fewer_macs": selection.plan.released_macs / macs,
        }
        results |= {f"{mode} {name}": value for name, value in some.items()}
        print(f"{mode}: layer {winner[0]}, position {winner[1]}; evaluation layers {selection.evaluation_layers}")
        for name, value in some.items():
            print(f"  {name:35} {value:10.4g}", flush=True)
        equal = some["max_score_difference"] <= TOLERANCE[dtype]
        print(
            f"  {len(found)} candidates' scores are {'equal' if equal else 'DIFFERENT'} (tolerance {TOLERANCE[dtype]})"
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a directory in Hugging Face format, or a hub id")
    parser.add_argument(
        "--prompts", default="demo", help="a contrast set, as `load_prompts` takes it; default the demo's"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--n-train", type=int, default=128, help="training prompts per side")
    parser.add_argument("--n-val", type=int, default=32, help="validation prompts per side")
    parser.add_argument("--sample", type=int, default=4, help="candidates of the plain procedure per mode, at least 2")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--no-record", action="store_true", help="print only; leave RESULTS.md as it is")
    args = parser.parse_args()
    if args.sample < 2:
        parser.error("--sample: one candidate before and one after; give at least 2")
    values = measure(args.model, args.prompts, args.device, args.mode, args.n_train, args.n_val, args.sample, args.seed)
    if not args.no_record:
        # The plain procedure gains nothing from AVX-512 where the library does, so that the ratio depends on it.
        processor = torch.backends.cpu.get_cpu_capability()
        where = f", {processor}" if "AVX512" not in processor else ""
        record(f"real{where}" if args.device == "cpu" else f"real {args.device}", values)


if __name__ == "__main__":
    main()
