"""Find out where and how strongly to steer a model, on training and validation prompts alone.

.venv/bin/python scripts/find_setting.py MODEL --prompts FILE --out FOLDER

The papers add a direction at the layer that it comes from, with α = 1, to every token. Where that is too weak or garbles the
answers, this looks further, in three steps that each print a table and write it to FOLDER:

1. cells.csv: every candidate's refusal score on positive prompts without the direction (ablation), and on negative prompts
   with it (addition at α = 3); the best few go on.
2. doses.csv: each of those added at other layers and strengths; refusal scores on negative prompts.
3. settings.csv: answers to validation prompts under ablation, and under the best doses on all tokens or on the prompt's
   alone; refusal rates, and the share of garbled answers beside them.

It ends with the `cosmic-tl run` command of the best setting: of those that garble at most a tenth of the answers, the one with
the largest sum of removed and induced refusals.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch

import cosmic_tl as ct
from cosmic_tl._util.progress import track
from cosmic_tl.engine import Reading, intervened
from cosmic_tl.experiments.conditions import Condition
from cosmic_tl.metrics.refusal_score import log_odds
from cosmic_tl.model.chat import tokenize

CELL_ALPHA = 3.0
ALPHAS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
MOST_GARBLED = 0.1


def log_odds_under(model, rows, edits, tokens, label) -> list[torch.Tensor]:
    """Log-odds of refusal's first tokens, of every prompt under every edit."""
    found = {}
    with track(len(edits), label) as advance:
        reduce = lambda outcome: log_odds(outcome.logits.cpu(), tokens.ids)  # noqa: E731
        for i, scores in intervened(model, rows, edits, Reading(logits=True), reduce):
            found[i] = scores
            advance(1)
    return [found[i] for i in range(len(edits))]


def show(table: pd.DataFrame, title: str, path: Path, n: int = 12) -> None:
    table.to_csv(path, index=False)
    print(f"\n{title}\n{table.head(n).to_string(index=False, float_format=lambda x: f'{x:.2f}')}", flush=True)


def cells(model, candidates, positions, rows, tokens, max_layer_share) -> pd.DataFrame:
    n_layers = int(model.cfg.n_layers)
    some = [
        (layer, position)
        for layer in range(n_layers // 3, n_layers)
        for position in positions.indices
        if layer < max_layer_share * n_layers
    ]
    directions = [candidates.direction(*cell) for cell in some]
    removed = log_odds_under(model, rows["positive"], [ct.Ablation(d) for d in directions], tokens, "cells, removal")
    induced = log_odds_under(
        model,
        rows["negative"],
        [ct.Addition(d, CELL_ALPHA) for d in directions],
        tokens,
        "cells, induction",
    )
    table = pd.DataFrame(some, columns=["layer", "position"])
    table["removed"] = [float(scores.mean()) for scores in removed]
    table["induced"] = [float(scores.mean()) for scores in induced]
    table["gap"] = table.induced - table.removed
    return table.sort_values("gap", ascending=False, ignore_index=True)


def doses(model, candidates, chosen, rows, tokens) -> pd.DataFrame:
    n_layers = int(model.cfg.n_layers)
    some = [
        (layer, position, at, alpha)
        for layer, position in chosen
        for at in range(n_layers // 2 - 1, layer + 1)
        for alpha in ALPHAS
    ]
    edits = [ct.Addition(candidates.direction(layer, at), alpha, layer=to) for layer, at, to, alpha in some]
    found = log_odds_under(model, rows["negative"], edits, tokens, "doses")
    table = pd.DataFrame(some, columns=["layer", "position", "induction_layer", "alpha"])
    # The mean probability of a refusal: log-odds alone would let a few prompts decide.
    table["refusal_probability"] = [float(scores.sigmoid().mean()) for scores in found]
    return table.sort_values("refusal_probability", ascending=False, ignore_index=True)


def settings(model, candidates, best, prompts, n_val, max_new_tokens) -> pd.DataFrame:
    conditions = [Condition("baseline", "positive", ()), Condition("baseline", "negative", ())]
    for layer, position in dict.fromkeys(zip(best.layer, best.position, strict=True)):
        conditions.append(
            Condition(f"{layer}, {position}", "positive", (ct.Ablation(candidates.direction(layer, position)),))
        )
    where = {}
    for _, row in best.iterrows():
        for scope in ("prompt", "all"):
            cell = int(row.layer), int(row.position)
            name = f"{cell[0]}, {cell[1]} at {row.induction_layer:.0f}, α = {row.alpha:g}, {scope}"
            where[name] = (*cell, int(row.induction_layer), row.alpha, scope)
            edit = ct.Addition(candidates.direction(*cell), row.alpha, scope, int(row.induction_layer))
            conditions.append(Condition(name, "negative", (edit,)))
    sides = [prompts.side(side, "val", n_val) for side in ("positive", "negative")]
    found = ct.measure_effects(model, sides, conditions=conditions, max_new_tokens=max_new_tokens)
    show(
        found.table[["side", "condition", "rate", "low", "high", "garbled"]],
        "Conditions",
        Path("/dev/null"),
        40,
    )
    rows = []
    for name, (layer, position, at, alpha, scope) in where.items():
        removal = f"{layer}, {position}"
        rows.append(
            {
                "layer": layer,
                "position": position,
                "induction_layer": at,
                "alpha": alpha,
                "induction_tokens": scope,
                "removal": found.rate("positive", removal).value,
                "removal_garbled": found.garbled("positive", removal).value,
                "induction": found.rate("negative", name).value,
                "induction_garbled": found.garbled("negative", name).value,
            }
        )
    table = pd.DataFrame(rows)
    table["usable"] = table[["removal_garbled", "induction_garbled"]].max(axis=1) <= MOST_GARBLED
    table["sum"] = table.induction - table.removal
    return table.sort_values(["usable", "sum"], ascending=False, ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompts", default="demo")
    parser.add_argument("--out", type=Path, default=Path("setting"))
    parser.add_argument("--n-train", type=int, default=180)
    parser.add_argument("--n-scan", type=int, default=16, help="validation prompts per side for refusal scores")
    parser.add_argument("--n-val", type=int, default=50, help="validation prompts per side for completions")
    parser.add_argument("--n-cells", type=int, default=5, help="directions that go on to the second step")
    parser.add_argument(
        "--n-doses", type=int, default=3, help="directions that go on to the third step, each at its best dose"
    )
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--max-layer-share", type=float, default=0.8)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    prompts, model = ct.load_prompts(args.prompts), ct.load_model(args.model)
    positions = ct.post_instruction_positions(model)
    train = [prompts.side(side, "train", args.n_train) for side in ("positive", "negative")]
    tokens = ct.metrics.find_refusal_tokens(model, train)
    print(f"refusal tokens: {tokens}", flush=True)
    candidates = ct.difference_in_means(*(ct.mean_activations(model, side, positions=positions) for side in train))
    rows = {side: tokenize(model, prompts.side(side, "val", args.n_scan)) for side in ("positive", "negative")}
    table = cells(model, candidates, positions, rows, tokens, args.max_layer_share)
    show(table, "Cells: refusal scores with the direction removed, and added", args.out / "cells.csv")
    chosen = list(zip(table.layer, table.position, strict=True))[: args.n_cells]
    table = doses(model, candidates, chosen, rows, tokens)
    show(table, "Doses: probability of refusal on negative prompts", args.out / "doses.csv")
    best = table.groupby(["layer", "position"], sort=False).head(1).head(args.n_doses)  # each direction's best dose
    table = settings(model, candidates, best, prompts, args.n_val, args.max_new_tokens)
    show(table, "Settings: shares of refused and of garbled answers", args.out / "settings.csv")
    best = table.iloc[0]
    if not best.usable:
        print(f"\nEvery setting garbles more than {MOST_GARBLED:.0%} of the answers of one side; the best of them:")
    print(
        f"\ncosmic-tl run {args.model} --prompts {args.prompts} --mode linear --cell {best.layer},{best.position} "
        f"--alpha {best.alpha:g} --induction-layer {best.induction_layer} --induction-tokens {best.induction_tokens}"
    )


if __name__ == "__main__":
    main()
