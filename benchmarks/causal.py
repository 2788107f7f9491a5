"""A causal map of a model of yours against the arithmetic that it cannot do without.

python -m benchmarks.causal MODEL [--prompts PROMPTS]

Interchange along the direction of what every block adds, at every layer and post-instruction position, on both sides, with one
placebo. The floor is the time of the multiply-adds of the tokens from the changed one on, in the blocks from the changed one on,
with the logits of the last token, and of one clean pass, at the rate at which this machine multiplies matrices of the model's
shapes, 256 tokens at a time. A sample of places is compared with whole passes under hooks.

On two CPU cores a model of half a billion parameters takes about ten minutes.
"""

import argparse
import random
from typing import Any

import torch

from benchmarks.results import record
from benchmarks.selection import matmul_rate
from benchmarks.shapes import seconds
from cosmic_tl import load_model, load_prompts, post_instruction_positions
from cosmic_tl.activations import class_means
from cosmic_tl.directions.difference_in_means import difference_in_means
from cosmic_tl.engine import Reading
from cosmic_tl.experiments import CausalMap, CausalOptions, causal_map, plan_causal_map
from cosmic_tl.metrics import find_refusal_tokens
from cosmic_tl.metrics.refusal_score import log_odds
from cosmic_tl.model.chat import tokenize
from cosmic_tl.patching import Change, Patch, patched
from cosmic_tl.selection.layer_rules import evaluation_layers, layer_similarity

N_TRAIN, N = 64, 32
PLACES = 4
"""Compared with whole passes."""


def by_whole_passes(model: Any, rows: list[list[int]], patch: Patch, ids: list[int]) -> torch.Tensor:
    """Refusal scores under a patch of what one block adds, one whole pass per prompt."""
    (change,) = patch.changes
    unit, target = change.read.double(), change.target.double()
    found = []
    for row in rows:
        entered: list[torch.Tensor] = []

        def enter(x: torch.Tensor, hook: Any, entered: list[torch.Tensor] = entered) -> None:
            entered.append(x)

        def leave(y: torch.Tensor, hook: Any, entered: list[torch.Tensor] = entered) -> torch.Tensor:
            added = (y - entered[-1])[0, patch.position].double()
            y = y.clone()
            y[0, patch.position] += (((target - added) @ unit) * unit).to(y.dtype)
            return y

        names = [f"blocks.{change.layer}.hook_resid_{end}" for end in ("pre", "post")]
        with torch.inference_mode(), model.hooks(fwd_hooks=list(zip(names, (enter, leave), strict=True))):
            found.append(log_odds(model(torch.tensor([row]))[0, -1:], ids)[0])
    return torch.stack(found)


def measure(model: str, prompts: str = "demo", n: int = N, seed: int = 0) -> dict[str, float]:
    """Seconds, time over the floor, and the largest difference from whole passes."""
    bridge = load_model(model, device="cpu")
    contrast = load_prompts(prompts)
    positions = post_instruction_positions(bridge)
    means = class_means(bridge, contrast.sides("train", N_TRAIN), positions=positions)
    layers = evaluation_layers(layer_similarity(*means))
    direction = difference_in_means(*means).direction(int(0.6 * bridge.cfg.n_layers), -1, bridge)
    tokens = find_refusal_tokens(bridge, contrast)
    val = contrast.sides("val", n)
    rows = [tokenize(bridge, side) for side in val]
    kept: list[CausalMap] = []

    def work() -> None:
        options = {"tokens": tokens, "evaluation_layers": layers, "whole": False}
        kept.append(causal_map(bridge, (list(val[0]), list(val[1])), direction, **options))  # type: ignore[arg-type]

    config = bridge.original_model.config.get_text_config()
    rate = matmul_rate(config, "cpu", torch.float32, tokens=256)
    took = seconds(work)
    rate = (rate + matmul_rate(config, "cpu", torch.float32, tokens=256)) / 2
    plan = (
        plan_causal_map(bridge, (list(val[0]), list(val[1])), CausalOptions(whole=False)).table.set_index("step").gmacs
    )
    macs = 1e9 * (plan["direction"] + plan["placebo"] + plan["clean"])  # means on top

    chance = random.Random(seed)
    patches = [
        Patch(
            chance.choice(positions.indices),
            (Change(chance.randrange(int(bridge.cfg.n_layers)), "block", 5 * direction.unit, direction.unit),),
        )
        for _ in range(PLACES)
    ]
    largest = 0.0
    few = rows[0][:2]
    keep = lambda outcome: log_odds(outcome.logits.cpu(), tokens.ids)  # noqa: E731
    for i, scores in patched(bridge, few, patches, Reading(logits=True), keep):
        largest = max(largest, float((scores - by_whole_passes(bridge, few, patches[i], tokens.ids)).abs().max()))
    for side in ("positive", "negative"):
        print(f"{side}:", kept[0].strongest(side, n=3).round(3).to_dict("records"))
    return {"seconds": took, "over_floor": took / (macs / rate), "max_score_difference": largest, "GMACs": macs / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a directory in Hugging Face format, or a hub id")
    parser.add_argument("--prompts", default="demo", help="a contrast set, as `load_prompts` takes it")
    parser.add_argument("--n", type=int, default=N, help="prompts per side")
    parser.add_argument("--no-record", action="store_true", help="print only; leave RESULTS.md as it is")
    args = parser.parse_args()
    values = measure(args.model, args.prompts, args.n)
    for name, value in values.items():
        print(f"{name:25} {value:10.4g}")
    if not args.no_record:
        record("causal", values)


if __name__ == "__main__":
    main()
