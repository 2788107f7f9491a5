"""What it costs to say how sure a COSMIC selection is.

python -m benchmarks.stability [MODEL] [--prompts PROMPTS] [--mode affine|linear]

Two whole selections, without and with resamples, from the same training means, and twice what is left when every score and
divergence is known: the clean passes, without and with the resampling.
"""

import argparse

from benchmarks.results import MODES, record
from benchmarks.shapes import seconds
from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
from cosmic_tl.activations import class_means
from cosmic_tl.interventions.options import Mode
from cosmic_tl.model.positions import post_instruction_positions
from cosmic_tl.selection.result import Selection
from cosmic_tl.selection.scores import Products, Scores


def measure(name: str, source: str, mode: Mode, n_train: int, n_val: int) -> dict[str, float]:
    """The measures of one mode."""
    model, prompts = load_model(name), load_prompts(source)
    positions = post_instruction_positions(model, None, None)
    means = class_means(model, prompts.sides("train", n_train), positions=positions)
    found: list[Selection] = []

    def took(n_resamples: int, scores: Scores, products: Products) -> float:
        options = CosmicOptions(mode=mode, n_train=n_train, n_val=n_val, n_resamples=n_resamples)
        return seconds(
            lambda: found.append(select_cosmic(model, prompts, options, means=means, scores=scores, products=products))
        )

    scores: Scores = {}
    products: Products = {}
    # What is found out once per model, by few prompts.
    few = CosmicOptions(mode=mode, n_train=n_train, n_val=2, n_resamples=0, max_kl=float("inf"))
    select_cosmic(model, prompts, few, means=means)
    alone, resampled = took(0, {}, {}), took(1000, scores, products)
    known, known_resampled = took(0, scores, products), took(1000, scores, products)
    stability = found[-1].stability
    assert stability is not None
    return {
        "training prompts per side": n_train,
        "validation prompts per side": n_val,
        "time of the resampling alone": (known_resampled - known) / alone,
        "time with its passes": (resampled - alone) / alone,
        "candidates whose KL was computed for it": float(stability.passes["kl"]),
        "candidates whose scores were computed for it": float(stability.passes["s_comply"]),
        "memory for the products, MB": sum(one.nbytes for one in products.values()) / 1e6,
        "wins": stability.wins,
        "seconds without": alone,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo", help="a directory, or a hub id; default the demo")
    parser.add_argument("--prompts", default="demo", help="a contrast set, as `load_prompts` takes it")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--n-train", type=int, default=128, help="training prompts per side")
    parser.add_argument("--n-val", type=int, default=32, help="validation prompts per side")
    parser.add_argument("--no-record", action="store_true", help="print only; leave RESULTS.md as it is")
    args = parser.parse_args()
    values: dict[str, float] = {}
    for mode in args.mode:
        some = measure(args.model, args.prompts, mode, args.n_train, args.n_val)
        for name, value in some.items():
            print(f"{mode} {name:45} {value:10.4g}", flush=True)
        values |= {f"{mode} {name}": value for name, value in some.items()}
    if not args.no_record:
        record("stability" if args.model == "demo" else "stability, real", values)


if __name__ == "__main__":
    main()
