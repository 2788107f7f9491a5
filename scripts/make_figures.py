"""Draw the pictures of README and docs from a finished run, and print README's table.

make demo && python scripts/make_figures.py demo-run
"""

import argparse
import json
from pathlib import Path

from cosmic_tl import CosmicOptions, load_model, load_prompts, plots, select_cosmic

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("demo-run"))
    parser.add_argument("--no-images", action="store_true")
    args = parser.parse_args()
    summary = json.loads((args.run / "summary.json").read_text())
    print("| test prompts | condition | refusals | 95 % interval |\n|---|---|---|---|")
    for kind, conditions in summary["rates"].items():
        for name, value in conditions.items():
            low, high = summary["intervals"][kind][name]
            print(f"| {kind} | {name.replace('_', ' ')} | {value:.0%} | {low:.0%} – {high:.0%} |")
    if not args.no_images:
        selection = select_cosmic(
            load_model("demo"), load_prompts("demo"), CosmicOptions(mode=summary["mode"], full_table=True)
        )
        IMAGES.mkdir(parents=True, exist_ok=True)
        plots.score_heatmap(selection).write_image(IMAGES / "scores.png", scale=2)


if __name__ == "__main__":
    main()
