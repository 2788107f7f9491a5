"""All measurements on random weights, written to RESULTS.md; `python -m benchmarks.real MODEL` adds a real model's.

python -m benchmarks [--only NAME …]
"""

import argparse
import json
from collections.abc import Callable

from benchmarks import extraction, generation, scaling, selection, startup
from benchmarks.results import record

MEASURES: dict[str, Callable[[], dict[str, float]]] = {
    "selection": selection.measure_flat,
    "extraction": extraction.measure,
    "generation": generation.measure,
    "scaling": scaling.measure,
    "startup": startup.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    args = parser.parse_args()
    for name in args.only:
        values = MEASURES[name]()
        print(name, json.dumps(values), flush=True)
        record(name, values)


if __name__ == "__main__":
    main()
