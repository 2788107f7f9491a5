"""What a plan predicts, and what the selection then takes: seconds, and memory beyond the weights.

python -m benchmarks.plan MODEL [--prompts PROMPTS] [--n 16] [--device cuda]

The plan is made with a probe of ten seconds, with the evaluation layers that the selection will rank, which a plan does not know
on its own. Measured are the whole selection with its training means, and by how much the process grew. Seconds are also given as
processor time, on both sides, which other programs on the machine do not change. Beside them stand the memory of an 8 B and a
72 B shape, on paper, for 100 + 100 prompts in bfloat16.
"""

import argparse
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, PretrainedConfig

from benchmarks.results import record
from benchmarks.shapes import SHAPES, seconds
from cosmic_tl import CosmicOptions, load_model, load_on_paper, load_prompts, plan_selection, select_cosmic
from cosmic_tl.activations import class_means
from cosmic_tl.check.memory import Memory
from cosmic_tl.engine.passes import layout
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.load import demo_path
from cosmic_tl.model.positions import post_instruction_positions
from cosmic_tl.selection.layer_rules import evaluation_layers, layer_similarity
from cosmic_tl.selection.pass_costs import block_costs
from cosmic_tl.selection.pass_timing import time_passes

GB = 1e9
PAPER = {"8 B": SHAPES["llama-8b"], "72 B": SHAPES["qwen-72b"]}


def on_paper(config: PretrainedConfig, n: int = 100) -> dict[str, float]:
    """Weights and peak of a selection in bfloat16, in GB, and its multiply-adds."""
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        AutoTokenizer.from_pretrained(demo_path()).save_pretrained(folder)
        model = load_on_paper(folder, dtype="bfloat16")
    options = CosmicOptions(n_val=n, n_train=n, evaluation_layers=(int(0.6 * model.cfg.n_layers),))
    plan = plan_selection(model, load_prompts("demo"), options)
    assert plan.forecast is not None
    memory = plan.forecast.memory
    return {
        "weights, GB": memory.weights / GB,
        "beyond the weights, GB": (memory.total - memory.weights) / GB,
        "TMACs": plan.macs / 1e12,
    }


def selected(model: str, prompts: str, options: CosmicOptions, device: str) -> tuple[float, float, float, int]:
    """Seconds of a selection and of the processor, GB by which it grew the process, and candidates whose divergence it needed."""
    bridge, contrast = _loaded(model, device), load_prompts(prompts)
    memory, found = Memory(bridge), []
    before = time.process_time()
    took = seconds(lambda: found.append(select_cosmic(bridge, contrast, options)), device)
    table, busy = found[0].table, time.process_time() - before
    return took, busy, memory.extra(), sum("kl" not in missing for missing in table.not_needed)


def _loaded(model: str, device: str) -> TransformerBridge:
    return load_model(model, device=device, dtype=torch.float32 if device == "cpu" else torch.bfloat16)


def measure(model: str, prompts: str = "demo", n: int = 16, device: str = "cpu") -> dict[str, float]:
    """Predicted and measured, and their ratios."""
    bridge, contrast = _loaded(model, device), load_prompts(prompts)
    means = class_means(bridge, contrast.sides("train", n))
    layers = evaluation_layers(layer_similarity(*means))
    del means
    options = CosmicOptions(n_train=n, n_val=n, n_resamples=0)
    plan = plan_selection(bridge, contrast, replace(options, evaluation_layers=tuple(layers)), probe=True)
    assert plan.forecast is not None
    predicted, memory = plan.forecast.seconds or float("nan"), plan.forecast.memory
    print(plan, flush=True)
    rows = tokenize(bridge, contrast.side("positive", "val", n))
    shared = layout(bridge, rows, len(post_instruction_positions(bridge)))
    timing = time_passes(bridge, rows, shared, max(layers), block_costs(bridge), clock=time.process_time)
    processor = replace(plan.forecast, timing=timing).seconds or float("nan")
    del bridge
    # In a process of its own, whose allocator holds nothing of the probe.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        took, busy, grown, kls = pool.submit(selected, model, prompts, options, device).result()
    values = {
        "seconds, predicted": predicted,
        "seconds, measured": took,
        "seconds, predicted over measured": predicted / took,
        "processor seconds, predicted over measured": processor / busy,
        "memory beyond the weights, GB, predicted": (memory.total - memory.weights) / GB,
        "memory beyond the weights, GB, measured": grown,
        "divergences that were needed (predicted: 1)": kls,
    }
    for name, config in PAPER.items():
        values |= {f"{name} on paper, {what}": value for what, value in on_paper(config).items()}
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a directory in Hugging Face format, or a hub id")
    parser.add_argument("--prompts", default="demo", help="a contrast set, as `load_prompts` takes it")
    parser.add_argument("--n", type=int, default=16, help="prompts per side and split")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-record", action="store_true", help="print only; leave RESULTS.md as it is")
    args = parser.parse_args()
    values = measure(args.model, args.prompts, args.n, args.device)
    for name, value in values.items():
        print(f"{name:50} {value:10.4g}")
    if not args.no_record:
        record("plan" if args.device == "cpu" else f"plan {args.device}", values)


if __name__ == "__main__":
    main()
