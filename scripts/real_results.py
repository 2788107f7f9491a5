"""Print the tables of docs/results.md from finished runs, and draw its pictures.

cosmic-tl run MODEL --prompts FILE … --out RUN      (and `cosmic-tl sweep`, `suffix` and `causal` of it for more figures)
.venv/bin/python scripts/real_results.py RUN [ANOTHER …]

The pictures come from the first run, but for the heatmap of scores: that is the last run's, where all candidates were scored.
"""

import argparse
import json
from dataclasses import fields
from pathlib import Path

import pandas as pd
from make_figures import print_effects, save_small

import cosmic_tl as ct
from cosmic_tl._util.files import read_lines
from cosmic_tl.experiments import CausalMap
from cosmic_tl.experiments.sweeps import Sweep
from cosmic_tl.metrics.fluency import mark_garbled
from cosmic_tl.runs.result import Run
from cosmic_tl.runs.run_files import read_settings
from cosmic_tl.runs.settings import RunSettings
from cosmic_tl.suffixes import SuffixAnalysis

MAIN = (("positive", "baseline"), ("positive", "removal"), ("negative", "baseline"), ("negative", "induction"))


def so_far(out: Path) -> ct.Effects:
    """The conditions that a run which is not finished has completed; which answers are garbled takes the model."""
    identity = read_settings(out)
    settings = RunSettings.from_json(identity["settings"])
    rows = [row for line in read_lines(out / "resume" / "completions.jsonl", dict) for row in line["rows"]]
    frame = pd.DataFrame(rows).assign(seed=pd.Series([row.get("seed") for row in rows], dtype=object))
    baseline = frame.condition == "baseline"
    marked = mark_garbled(ct.load_model(identity["model"]), frame, baseline, chat=settings.chat, batch_size=32)
    return ct.Effects(frame.assign(garbled=marked))


def print_rates(effects: ct.Effects, leave_out: set[str]) -> None:
    print_effects(effects)
    rest = effects.completions
    rest = ct.Effects(rest[~rest.prompt.isin(leave_out)])
    if leave_out:
        for side, condition in MAIN:
            rate = rest.rate(side, condition)
            print(
                f"* without the first prompts of the file: {effects.terms.sides[side]}, {condition} {rate} of {rate.n}"
            )
    print("\n| on | test | only the first | only the other | p |\n|---|---|---|---|---|")
    for _, row in effects.paired_table().iterrows():
        counts = f"{row.only_condition} | {row.only_against} | {row.p_value:.1g}"
        print(f"| {effects.terms.sides[row.side]} | {row.condition} against {row.against} | {counts} |")


def print_run(found: Run, leave_out: set[str]) -> None:
    selection, options = found.selection, found.settings.selection
    where = f"layer {selection.direction.layer}, position {selection.direction.position}"
    print(f"\n## {selection.method}, {selection.mode}: {where}; induction with {selection.edits.induced}\n")
    print(f"{options.n_train} training and {options.n_val} validation prompts per side; {selection.basis}.")
    for remark in selection.remarks:
        print(f"* {remark}")
    if selection.null is not None:
        print(f"\n{selection.null}")
    print(f"\n{found.summary['seconds']:.0f} s in all.\n")
    print_rates(found.effects, leave_out)
    kept = selection.table[selection.table.score.notna()]
    print(f"\n{kept.sort_values('score', ascending=False).head(8).to_string(index=False)}")


def draw(first: Run, last: Run) -> None:
    save_small({"real-scores": ct.figures.plot_scores(last.selection)})
    save_small({"real-layer-similarity": ct.figures.plot_layer_similarity(last.selection)})
    save_small({"real-similarity": ct.figures.plot_similarity(first.similarity)})
    save_small({"real-rates": ct.figures.plot_refusal_rates(first.effects)})
    for run in (first, last):
        for log in sorted((run.out / "resume").glob("sweep-*.jsonl")):
            rows = [row for line in read_lines(log, dict) for row in line["rows"]]
            save_small({"real-sweep": ct.figures.plot_sweep(Sweep(pd.DataFrame(rows)))})
        if (run.out / "suffix-cosines.csv").exists():
            tables = [pd.read_csv(run.out / f"suffix-{one.name}.csv") for one in fields(SuffixAnalysis)]
            save_small({"real-suffix-cosines": ct.figures.plot_suffix_cosines(SuffixAnalysis(*tables))})
        if (run.out / "causal.csv").exists():
            save_small({"real-causal-map": causal_map_of(run).plot()})
        if run.selection.null is not None:
            save_small({"real-null": run.selection.null.plot()})


def causal_map_of(run: Run) -> CausalMap:
    """The map that `cosmic-tl causal RUN` wrote, without its shares."""
    made = json.loads((run.out / "derived.json").read_text(encoding="utf-8"))["causal"]
    table = pd.read_csv(run.out / "causal.csv")
    positions = ct.Positions(tuple(table.drop_duplicates("position").sort_values("position").token))
    counts = [min(made["n_test"], len(side)) for side in run.test_prompts()]
    what = {name: made[name] for name in ("part", "treatment", "span")}
    return CausalMap(table, table.iloc[:0], **what, positions=positions, n_prompts=(counts[0], counts[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--no-images", action="store_true")
    parser.add_argument("--unfinished", action="store_true", help="only rates, of the conditions that are done so far")
    parser.add_argument("--prompts", help="the prompt file, for --leave-out")
    parser.add_argument(
        "--leave-out", type=int, default=0, help="report rates without this many first test prompts too"
    )
    args = parser.parse_args()
    leave_out: set[str] = set()
    if args.leave_out:
        known = ct.load_prompts(args.prompts, shuffle=False)
        leave_out = {prompt for side in known.sides("test") for prompt in side[: args.leave_out]}
    if args.unfinished:
        for path in args.runs:
            print_rates(so_far(path), leave_out)
        return
    found = [Run.load(path) for path in args.runs]
    for one in found:
        print_run(one, leave_out)
    if not args.no_images:
        draw(found[0], found[-1])


if __name__ == "__main__":
    main()
