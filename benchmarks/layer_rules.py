"""Does it help to pick COSMIC's evaluation layers by another rule, or to compare with another target? What each choice does on
held-out prompts, at equal KL.

python -m benchmarks.layer_rules MODEL [--prompts PROMPTS] [--variants centred]

Each variant selects a direction from the same training and validation prompts. On test prompts: the change of the refusal score
of positive prompts under its removal, and of negative prompts under its induction, at the strength at which the next token
diverges from the clean model by as much as under that of the paper's choice. Intervals are of the difference from the paper's
choice, prompt by prompt.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import pandas as pd
import torch

from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
from cosmic_tl.experiments.causal_statistics import interval, resamples
from cosmic_tl.interventions.steer import intervention_hooks
from cosmic_tl.metrics import find_refusal_tokens, kl_divergence, refusal_scores, refusal_tokens
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.forward import next_token_logits
from cosmic_tl.selection.equal_kl import equal_kl
from cosmic_tl.selection.options import LayerRule, Target

PAPER = "paper"
RULES: dict[str, dict[str, Any]] = {rule: {"evaluation_layers": rule} for rule in get_args(LayerRule)}
TARGETS: dict[str, dict[str, Any]] = {target: {"target": target} for target in get_args(Target) if target != "mean"}


def divergence(model: Any, prompts: list[str], edits: Any) -> float:
    """Mean KL of the next token from the clean model, nats."""
    total, hooks = 0.0, intervention_hooks(model, edits)
    for batch in batches(model, tokenize(model, prompts), None):
        total += float(kl_divergence(next_token_logits(model, batch), next_token_logits(model, batch, hooks)).sum())
    return total / len(prompts)


def measure(
    name: str,
    prompts: str,
    variants: Sequence[str],
    n_train: int,
    n_val: int,
    n_test: int,
    texts: tuple[str, ...] | None,
) -> pd.DataFrame:
    """One row per variant, the paper's procedure first."""
    model, contrast = load_model(name, device="cpu"), load_prompts(prompts)
    options = CosmicOptions(n_train=n_train, n_val=n_val, n_resamples=0, tokens=texts)
    positive, negative = contrast.sides("test", n_test)
    rows: list[dict[str, Any]] = []
    chosen: dict[tuple[int, int], Any] = {}
    selections = {}
    for variant in (PAPER, *variants):
        found = select_cosmic(model, contrast, replace(options, **{PAPER: {}, **RULES, **TARGETS}[variant]))
        selections[variant] = found
        chosen.setdefault((found.direction.layer, found.direction.position), found)
    tokens = refusal_tokens(model, texts) if texts else find_refusal_tokens(model, contrast)
    first = selections[PAPER]
    others = {i: one.direction for i, one in enumerate(chosen.values()) if one.direction is not first.direction}
    target, strengths = equal_kl(model, tokenize(model, negative), first.direction, others, first.edits)
    done: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor, float, float, float]] = {}
    before = refusal_scores(model, positive, tokens), refusal_scores(model, negative, tokens)
    for i, (cell, one) in enumerate(chosen.items()):
        alpha, nats = strengths.get(i, (first.edits.alpha, target))
        removed = refusal_scores(model, positive, tokens, interventions=one.edits.removal(one.direction)) - before[0]
        induced = (
            refusal_scores(model, negative, tokens, interventions=one.edits.induction(one.direction, alpha)) - before[1]
        )
        done[cell] = removed, induced, alpha, nats, divergence(model, negative, one.edits.removal(one.direction))
    for variant, found in selections.items():
        removed, induced, alpha, nats, harm = done[found.direction.layer, found.direction.position]
        row: dict[str, Any] = {"variant": variant, "layers": ",".join(map(str, found.evaluation_layers))}
        row |= {"layer": found.direction.layer, "position": found.direction.position}
        for effect, values, base in (("removal", removed, 0), ("induction", induced, 1)):
            apart = values - done[first.direction.layer, first.direction.position][base]
            low, high = interval(resamples(len(apart), 0) @ apart.numpy())
            row |= {effect: float(values.mean()), f"{effect}_low": float(low), f"{effect}_high": float(high)}
        rows.append(row | {"alpha": alpha, "induction_kl": nats, "removal_kl": harm})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="demo, demo-weak, a directory in Hugging Face format, or a hub id")
    parser.add_argument("--prompts", default="demo", help="a contrast set, as `load_prompts` takes it")
    parser.add_argument(
        "--variants", nargs="+", choices=(*RULES, *TARGETS), default=[*RULES], help="default: the rules"
    )
    parser.add_argument("--n-train", type=int, default=128)
    parser.add_argument("--n-val", type=int, default=32)
    parser.add_argument("--n-test", type=int, default=64)
    parser.add_argument("--tokens", help="text that an answer with the concept begins with, where the model gives none")
    args = parser.parse_args()
    texts = None if args.tokens is None else (args.tokens,)
    found = measure(args.model, args.prompts, args.variants, args.n_train, args.n_val, args.n_test, texts)
    print("Intervals: difference from the paper's choice.")
    print(found.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
