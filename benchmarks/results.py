"""Where measurements are kept: results.json, and RESULTS.md made from it."""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS, KEPT = (Path(__file__).with_name(name) for name in ("RESULTS.md", "results.json"))
ORDER = (
    "real",
    "plan",
    "selection",
    "causal",
    "stability",
    "extraction",
    "generation",
    "scaling",
    "workers",
    "startup",
)
COMMANDS = {
    "real": "python -m benchmarks.real MODEL --prompts PROMPTS",
    "plan": "python -m benchmarks.plan MODEL --prompts PROMPTS",
    "workers": "python -m benchmarks.workers MODEL --prompts PROMPTS",
    "causal": "python -m benchmarks.causal MODEL --prompts PROMPTS",
    "stability, real": "python -m benchmarks.stability MODEL --prompts PROMPTS",
}
MODES = ("affine", "linear")
REAL = {
    "affine ratio": "≥ 18",
    "linear ratio": "≥ 11",
    **{f"{mode} over_floor": "≤ 1.5" for mode in MODES},
    **{f"{mode} max_score_difference": "≤ 1e-4" for mode in MODES},
    **{f"{mode} peak memory over the weights, GB": "≤ 1.5" for mode in MODES},
}
BARS = {
    "real": REAL,
    "real, AVX2": REAL,
    "selection": {
        "mid affine ratio": "≥ 12",
        "mid linear ratio": "≥ 8",
        "last affine ratio": "≥ 6",
        "last linear ratio": "≥ 4.5",
        **{f"{where} {mode} over_floor": "≤ 1.6" for where in ("mid", "last") for mode in MODES},
        **{f"{where} {mode} max_score_difference": "≤ 1e-4" for where in ("mid", "last") for mode in MODES},
    },
    "causal": {"seconds": "≤ 600", "over_floor": "≤ 1.6", "max_score_difference": "≤ 1e-4"},
    "stability, real": {
        **{f"{mode} time of the resampling alone": "≤ 0.05" for mode in MODES},
        **{f"{mode} time with its passes": "≤ 0.25" for mode in MODES},
        **{f"{mode} memory for the products, MB": "≤ 80" for mode in MODES},
    },
    "extraction": {"time over a bare pass": "≤ 1.15", "peak memory, 10 000 over 100": "≤ 1.10"},
    "workers": {
        "speed over one worker of one thread": "≥ 1.7",
        "speed over one process with all threads": "≥ 0.9",
        "one worker over one process, all threads": "≤ 1.1",
        "one worker over one process, one thread": "≤ 1.1",
        "max_score_difference, same threads": "0",
        "max_score_difference, workers and one process of one thread": "0",
        "max_score_difference, other threads": "≤ 1e-6",
    },
    "generation": {"time over plain generate": "≤ 1.15"},
    "gpu": {
        "seconds": "≤ 60",
        "over_floor": "≤ 2.5",
        "largest score difference from float32": "≤ 5e-3",
        "time over plain generate": "≤ 1.15",
    },
    "startup": {
        "cosmic-tl --help, seconds": "≤ 0.5",
        "import cosmic_tl, seconds": "≤ that of transformer_lens + 0.3",
        "every public name, minus the import of TransformerBridge, seconds": "≤ 0.3",
    },
}


def part_of(name: str) -> str:
    """The script that a section's numbers are of, as in "real, AVX2"."""
    return name.split()[0].removesuffix(",")


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
        command = COMMANDS.get(name) or COMMANDS.get(part_of(name), f"python -m benchmarks.{name}")
        lines += ["", f"## {name}", f"`{command}`", "", "| measure | found | bar |", "|---|---|---|"]
        lines += [f"| {key} | {value:.3g} | {bars.get(key, '')} |" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def record(name: str, values: dict[str, float]) -> None:
    """Put the values of one part in place of its earlier ones."""
    results = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    results[name] = values
    place = {known: number for number, known in enumerate(ORDER)}
    results = dict(sorted(results.items(), key=lambda item: (place.get(part_of(item[0]), len(ORDER)), item[0])))
    KEPT.write_text(json.dumps(results, indent=1) + "\n")
    RESULTS.write_text(page(results))
