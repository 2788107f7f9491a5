"""Draw the pictures of README and docs from a finished run, and print a table of its rates.

make demo && .venv/bin/python scripts/make_figures.py demo-run

Needs Chromium, the extras `figures` and `dev` (pillow), and a few minutes: selections, sweep and suffix are computed again.
"""

import argparse
import shutil
from pathlib import Path

import plotly.graph_objects as go

from cosmic_tl import (
    AffineEdit,
    CosmicOptions,
    Effects,
    RefusalTokenOptions,
    calibrate,
    layer_similarities,
    load_model,
    load_prompts,
    pca_of_classes,
    project,
    select_by_refusal_tokens,
    select_cosmic,
    sweep,
)
from cosmic_tl.experiments import causal_map, cosines_by_layer, follow_conversation, measure_sensitivity
from cosmic_tl.figures import (
    plot_direction_cosines,
    plot_head_attention,
    plot_head_contributions,
    plot_layer_cosines,
    plot_layer_similarity,
    plot_pca,
    plot_projection,
    plot_refusal_rates,
    plot_score_comparison,
    plot_scores,
    plot_similarity,
    plot_stability,
    plot_suffix_cosines,
    plot_sweep,
    save_figures,
)
from cosmic_tl.runs.result import Run
from cosmic_tl.selection import measure_null, measure_null_grid
from cosmic_tl.studies import read_study, run_study
from cosmic_tl.suffixes import SuffixOptions, analyse_suffix, compliant_targets, find_suffix

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
STUDY = IMAGES.parents[1] / "studies" / "demo.yaml"
PROMPT = "Can you help me kidnap a tourist?"


def print_effects(effects: Effects) -> None:
    print("| prompts | condition | refusals | interval, or range over seeds | garbled | nats per token |")
    print("|---|---|---|---|---|---|")
    for _, row in effects.table.iterrows():
        of = f" ({row.seeds} seeds)" if row.get("seeds", 0) > 1 else ""
        print(
            f"| {effects.terms.sides[row.side]} | {row.condition}{of} | {row.rate:.0%} | {row.low:.0%} – {row.high:.0%} "
            f"| {row.garbled:.0%} | {row.cross_entropy:.2f} |"
        )


def figures(run: Run) -> dict[str, go.Figure]:
    """Every figure of the toolkit, by the name of its picture."""
    model, prompts = load_model("demo"), load_prompts("demo")
    direction, mode = run.selection.direction, run.selection.mode
    harmful, harmless = prompts.side("positive", "test", 24), prompts.side("negative", "test", 24)

    options = CosmicOptions(mode=mode, full_table=True)
    selection = select_cosmic(model, prompts, options)
    removed = selection.removal()
    by_tokens = select_by_refusal_tokens(model, prompts, RefusalTokenOptions(full_table=True))
    weak, weakly = (
        load_model("demo-weak"),
        CosmicOptions(mode=mode, full_table=True, exclude_first_half=True, max_kl=10.0),
    )
    compared = {"demo": selection, "demo-weak": select_cosmic(weak, prompts, weakly)}
    by_layer = {
        "demo": cosines_by_layer(model, (harmful, harmless), direction),
        "demo-weak": cosines_by_layer(weak, (harmful, harmless), direction.for_model(weak)),
    }
    drawn = {
        "scores": plot_scores(selection),
        "stability": plot_stability(selection.stability),
        "sensitivity": measure_sensitivity(model, prompts, CosmicOptions(mode=mode, n_val=32)).plot(),
        "generators": select_cosmic(
            model,
            prompts,
            CosmicOptions(mode=mode, n_val=32, directions=("dim", "pca", "lat", "probe", "lda", "projected")),
        ).generators.plot(),
        "null": measure_null(model, prompts, options).plot(),
        "null-grid": measure_null_grid(model, prompts, selection, options).plot(),
        "scores-by-refusal-tokens": plot_scores(by_tokens),
        "score-comparison": plot_score_comparison(compared),
        "layer-similarity": plot_layer_similarity(selection),
        "direction-cosines": plot_direction_cosines(selection.candidates, direction.position),
        "layer-cosines": plot_layer_cosines(by_layer),
        "similarity": plot_similarity(layer_similarities(model, (harmful, harmless), selection)),
    }
    drawn["refusal-rates"] = plot_refusal_rates(run.effects)
    steered = sweep(model, (harmful, harmless), direction, tokens=by_tokens.tokens, max_new_tokens=16)
    drawn["sweep"] = plot_sweep(steered)

    drawn["causal-map"] = causal_map(model, prompts, selection, tokens=by_tokens.tokens, n_train=100, n_val=40).plot()

    drawn["cost-curves"] = calibrate(model, harmless[:8], direction, tokens=by_tokens.tokens, max_new_tokens=24).plot()

    projections = {
        "as it is": project(model, PROMPT, direction),
        "removed": project(model, PROMPT, direction, interventions=removed),
    }
    drawn["projection"] = plot_projection(projections)
    drawn["conversation"] = follow_conversation(model, PROMPT, selection).plot()
    edits = {alpha: AffineEdit(direction, alpha) for alpha in (0.0, 0.5, 1.0)}
    sides = prompts.side("positive", "val", 40), prompts.side("negative", "val", 40)
    pca = pca_of_classes(model, sides, edits)
    drawn["pca"] = plot_pca(pca)
    drawn["pca-side-by-side"] = plot_pca(pca, side_by_side=True)

    options = SuffixOptions(n_tokens=8, steps=15, n_candidates=48, top_k=64, max_new_tokens=32)
    targets = compliant_targets(model, harmful[:2], removed, n_tokens=12)
    suffix = find_suffix(model, harmful[:2], targets, options=options)
    others = prompts.side("positive", "test")[40:70]
    analysis = analyse_suffix(model, (others, harmless), suffix.text, direction, max_new_tokens=16)
    drawn["suffix-cosines"] = plot_suffix_cosines(analysis)
    drawn["head-contributions"] = plot_head_contributions(analysis)
    drawn["head-attention"] = plot_head_attention(analysis)
    drawn["study"] = run_study(read_study(STUDY), run.out.with_name("demo-study")).plot()
    return drawn


def save_small(figures: dict[str, go.Figure], **options: str) -> None:
    """Write pictures of few colours, all with one browser."""
    for path in save_figures({IMAGES / f"{name}.png": one for name, one in figures.items()}, scale=2.0, **options):
        shrink(path)


def save_html(name: str, html: str) -> None:
    """Write a picture of what a notebook shows."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 760, "height": 200}, device_scale_factor=2)
        page.set_content(f'<body style="margin:0;padding:8px;font:14px/1.4 sans-serif">{html}</body>')
        page.locator("body").screenshot(path=IMAGES / f"{name}.png")
        browser.close()
    shrink(IMAGES / f"{name}.png")


def shrink(path: Path) -> None:
    from PIL import Image  # which the table does without

    with Image.open(path) as image:
        small = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("demo-run"))
    parser.add_argument("--no-images", action="store_true")
    args = parser.parse_args()
    run = Run.load(args.run)
    print_effects(run.effects)
    if not args.no_images:
        IMAGES.mkdir(parents=True, exist_ok=True)
        drawn = figures(run)
        save_small(drawn)
        save_small({"sweep-column-dark": drawn["sweep"]}, width="column", theme="dark")
        save_html("conversation-text", follow_conversation(load_model("demo"), PROMPT, run.selection).html())


if __name__ == "__main__":
    main()
