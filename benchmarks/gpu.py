"""An 8 B shape on one GPU: a whole affine selection, its scores in bfloat16 beside float32, and generation.

python -m benchmarks.gpu [--tiny] [--json FILE]

Random weights in bfloat16 are made on the device from a configuration; nothing is downloaded. 100 + 100 training and validation
prompts of 33 to 60 tokens, five positions, evaluation layers as ranked.

* seconds: the selection with its training means.
* over_floor: these seconds over those of the multiply-adds that it cannot do without, at the rate at which the device multiplies
  matrices of these shapes, 1024 tokens at a time.
* The largest difference of any score from float32 on the same weights, at a depth at which float32 fits beside them.
* Steered completions over plain `generate` on the same batches.
* The peak of the device's memory during the selection, and what `plan_selection` predicts for it.

`--tiny` runs the same at tiny size, on a CPU where there is no GPU; its times mean nothing.
"""

import argparse
import gc
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.real import means_macs
from benchmarks.results import record
from benchmarks.selection import SIDES, done_macs, matmul_rate
from benchmarks.shapes import CHAT, SHAPES, Pair, alternate, prompts, seconds
from cosmic_tl import AffineEdit, CosmicOptions, Direction, Selection, complete, plan_selection, select_cosmic
from cosmic_tl.activations import MeanActivations, class_means
from cosmic_tl.check.memory import Memory
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import tokenize

GB, TOLERANCE, ANY_KL = 1e9, 5e-3, 1e9


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    shape: str
    n: int
    """Prompts per side and split."""
    few_layers: int
    """Depth at which float32 fits."""
    n_few: int
    """Prompts per side there."""
    n_generated: int
    new_tokens: int
    rounds: int


FULL = Size("llama-8b", n=100, few_layers=8, n_few=32, n_generated=32, new_tokens=64, rounds=3)
TINY = Size("tiny", n=8, few_layers=3, n_few=6, n_generated=4, new_tokens=4, rounds=1)


def whole(size: Size, device: str) -> dict[str, float]:
    """Seconds, time over the floor and memory of a selection, and generation over plain `generate`."""
    pair = Pair(size.shape, device, torch.bfloat16)
    bridge, contrast = pair.bridge, prompts(pair.bridge, size.n)
    options = CosmicOptions(n_train=size.n, n_val=size.n, n_positions=5, max_kl=ANY_KL, n_resamples=0)
    work = lambda: select_cosmic(bridge, contrast, options, chat=CHAT)  # noqa: E731
    work() if device.startswith("cuda") else None  # kernels are chosen in the first
    rate = matmul_rate(SHAPES[size.shape], device, torch.bfloat16)
    memory, found = Memory(bridge), list[Selection]()
    took = seconds(lambda: found.append(work()), device)
    grown = memory.extra()
    rate = (rate + matmul_rate(SHAPES[size.shape], device, torch.bfloat16)) / 2
    train = [tokenize(bridge, contrast.side(side, "train", size.n), CHAT) for side in SIDES]
    macs = done_macs(found[0]) + sum(means_macs(bridge, rows, options.n_positions or 5) for rows in train)
    plan = plan_selection(bridge, contrast, options, chat=CHAT)
    assert plan.forecast is not None
    predicted = plan.forecast.memory
    return {
        "seconds": took,
        "over_floor": took / (macs / rate),
        "TMACs per second": rate / 1e12,
        "time over plain generate": generation(pair, size),
        "peak memory beyond the weights, GB": grown,
        "peak memory beyond the weights, GB, predicted": (predicted.total - predicted.weights) / GB,
        "weights, GB": predicted.weights / GB,
    }


def generation(pair: Pair, size: Size) -> float:
    """Time of steered completions over plain `generate`."""
    n = size.n_generated
    texts = prompts(pair.bridge, n).side("negative", "val", n)
    d_model = int(pair.bridge.cfg.d_model)
    edit = AffineEdit(Direction(torch.ones(d_model), torch.zeros(d_model), 1, -1), 0.0)

    def plain() -> None:
        with torch.inference_mode():
            for batch in batches(pair.bridge, tokenize(pair.bridge, texts, CHAT), n):
                ids, mask = batch.ids, batch.mask
                out = pair.plain.generate(
                    ids, attention_mask=mask, max_new_tokens=size.new_tokens, do_sample=False, pad_token_id=0
                )
                pair.bridge.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)

    def steered() -> None:
        complete(pair.bridge, texts, edit, chat=CHAT, max_new_tokens=size.new_tokens, batch_size=n)

    return alternate(steered, plain, size.rounds)


def beside_float32(size: Size, device: str) -> dict[str, float]:
    """The largest difference of any score from float32, on the same weights, means and candidates."""
    config = SHAPES[size.shape].to_dict() | {"num_hidden_layers": size.few_layers, "layer_types": None}
    SHAPES["few layers"] = type(SHAPES[size.shape])(**config)
    half = Pair("few layers", device, torch.bfloat16).bridge
    exact = Pair("few layers", device, torch.float32).bridge
    # Another dtype draws other numbers; these are the ones that bfloat16 has.
    exact.original_model.load_state_dict(half.original_model.state_dict())
    contrast, n = prompts(half, size.n_few), size.n_few
    layer = (size.few_layers - 1,)
    options = CosmicOptions(
        n_train=n, n_val=n, n_positions=5, evaluation_layers=layer, max_kl=ANY_KL, n_resamples=0, full_table=True
    )
    means: tuple[MeanActivations, MeanActivations] = class_means(exact, contrast.sides("train", n), chat=CHAT)
    tables = [select_cosmic(model, contrast, options, chat=CHAT, means=means).table for model in (half, exact)]
    differences = [
        float((tables[0][name].astype(float) - tables[1][name].astype(float)).abs().max())
        for name in ("s_comply", "s_refuse")
    ]
    return {"largest score difference from float32": max(differences)}


def measure(tiny: bool = False) -> dict[str, float]:
    """Everything, on the GPU; at tiny size on a CPU if there is none."""
    if not torch.cuda.is_available() and not tiny:
        raise SystemExit("No GPU here: --tiny runs the same at tiny size on the CPU.")
    size, device = (TINY if tiny else FULL), "cuda" if torch.cuda.is_available() else "cpu"
    found = beside_float32(size, device)
    gc.collect()
    torch.cuda.empty_cache()
    return whole(size, device) | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="the same at tiny size; nothing is recorded")
    parser.add_argument("--json", type=Path, help="write the results here too")
    args = parser.parse_args()
    values = measure(args.tiny)
    for name, value in values.items():
        print(f"{name:50} {value:10.4g}")
    if args.json is not None:
        args.json.write_text(json.dumps(values, indent=1) + "\n")
    if not args.tiny:
        record("gpu", values)


if __name__ == "__main__":
    main()
