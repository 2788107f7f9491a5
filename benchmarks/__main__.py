"""All measurements, written to RESULTS.md.

python -m benchmarks [--only NAME …]
"""

import argparse
import json
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks import extraction, generation, scaling, selection, startup

RESULTS, KEPT = (Path(__file__).with_name(name) for name in ("RESULTS.md", "results.json"))
BARS = {
    "selection": {
        "mid affine ratio": "≥ 12",
        "mid linear ratio": "≥ 8",
        "last affine ratio": "≥ 6",
        "last linear ratio": "≥ 4.5",
        **{f"{where} {mode} over_floor": "≤ 1.6" for where in ("mid", "last") for mode in ("affine", "linear")},
        **{
            f"{where} {mode} max_score_difference": "≤ 1e-4"
            for where in ("mid", "last")
            for mode in ("affine", "linear")
        },
    },
    "extraction": {"time over a bare pass": "≤ 1.15", "peak memory, 10 000 over 100": "≤ 1.10"},
    "generation": {"time over plain generate": "≤ 1.15"},
    "startup": {
        "cosmic-tl --help, seconds": "≤ 0.5",
        "import cosmic_tl, seconds": "≤ that of transformer_lens + 0.3",
        "every public name, minus the import of TransformerBridge, seconds": "≤ 0.3",
    },
}
MEASURES: dict[str, Callable[[], dict[str, float]]] = {
    "selection": selection.measure_flat,
    "extraction": extraction.measure,
    "generation": generation.measure,
    "scaling": scaling.measure,
    "startup": startup.measure,
}


def page(results: dict[str, dict[str, float]]) -> str:
    """The results as a page."""
    lines = [
        "# Results",
        "",
        f"Ratios, not absolute times, on {torch.get_num_threads()} cores ({platform.machine()}, CPU), torch "
        f"{version('torch')}, transformers {version('transformers')}, transformer_lens {version('transformer_lens')}.",
        "Written by `make bench`; each part has its own command.",
    ]
    for name, values in results.items():
        bars = BARS.get(name, {})
        lines += ["", f"## {name}", f"`python -m benchmarks.{name}`", "", "| measure | found | bar |", "|---|---|---|"]
        lines += [f"| {key} | {value:.3g} | {bars.get(key, '')} |" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    args = parser.parse_args()
    results = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name in args.only:
        results[name] = MEASURES[name]()
        print(name, json.dumps(results[name]), flush=True)
        results = {known: results[known] for known in MEASURES if known in results}
        KEPT.write_text(json.dumps(results, indent=1) + "\n")
        RESULTS.write_text(page(results))


if __name__ == "__main__":
    main()
