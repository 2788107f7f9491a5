"""Print what this library's own edits of a model do, whole and at equal KL: unedited, ablation, ACE, subspace, LoRA.

.venv/bin/python scripts/compare_edits.py MODEL --prompts FILE [--nats 0.1] [--rank 3] [--refine 30]

A removal has no strength of its own, so for equal KL each is done in part: `x' = x − s (x − edit(x))`, with the share s at which
the KL divergence per token, on harmless validation prompts, is the least of the whole edits' (or --nats). The numbers are of test
prompts. LoRA is the same ablation in the weights, written and merged by peft, where that is installed. With --refine STEPS the
ablation of the direction that gradient descent makes of the chosen one (`refine_direction`) is among the edits.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from math import isnan
from tempfile import TemporaryDirectory
from typing import Any

import torch

import cosmic_tl as ct
from cosmic_tl.directions import class_subspace
from cosmic_tl.experiments import ModelComparison, refine_direction
from cosmic_tl.experiments.descent import BATCH
from cosmic_tl.export import export_edit
from cosmic_tl.interventions import SubspaceEdit
from cosmic_tl.interventions.edits import Edit
from cosmic_tl.metrics.likelihood import tokenize_pairs
from cosmic_tl.metrics.token_divergence import token_divergences


@dataclass(frozen=True, eq=False)
class Share(Edit):
    """A share of another edit."""

    whole: Edit
    share: float

    @property
    def map(self) -> ct.AffineMap:
        found = self.whole.map
        left, right, offset = found.left, self.share * found.right, self.share * found.offset
        return ct.AffineMap(left, right, offset, found.fingerprint, found.model)

    @property
    def place(self) -> Any:
        return self.whole.place

    def points(self, n_layers: int) -> Any:
        return self.whole.points(n_layers)

    def check(self, model: Any) -> None:
        self.whole.check(model)


def least_kl(model: Any, harmless: list[str], edits: list[Edit], max_new_tokens: int) -> float:
    """The least of some edits' mean KL per token over the model's own completions."""
    own = ct.complete(model, harmless, max_new_tokens=max_new_tokens)
    heads, tails = tokenize_pairs(model, harmless, own)
    spoken = [i for i, tail in enumerate(tails) if tail]
    found = token_divergences(model, [heads[i] for i in spoken], [tails[i] for i in spoken], edits)
    return min(float(torch.cat(kl).mean()) for kl in found)


def line(name: str, share: float, found: ModelComparison, column: str = "edited") -> str:
    """A row of the table."""
    rows = found.headline.assign(key=found.table.measure, side=found.table.side).set_index(["key", "side"])
    measures = [
        ("refusal", "positive"),
        ("garbled", "positive"),
        ("refusal", "negative"),
        ("kl_first", "negative"),
        ("kl_first_reverse", "negative"),
        ("kl_token", "negative"),
    ]
    cells = [rows.loc[measure, column] for measure in measures]
    return f"| {name} | {'–' if isnan(share) else f'{share:.3g}'} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompts", required=True)
    parser.add_argument(
        "--nats", type=float, default=None, help="KL per token; by default the least of the whole edits'"
    )
    parser.add_argument("--rank", type=int, default=3, help="directions of the subspace")
    parser.add_argument("--refine", type=int, default=0, metavar="STEPS", help="of the gradient; default none")
    parser.add_argument("--refine-batch", type=int, default=BATCH, help="prompts per step and side")
    parser.add_argument("--n-train", type=int, default=128)
    parser.add_argument("--n-val", type=int, default=32)
    parser.add_argument("--n-test", type=int, default=100)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--device", default=None)
    args = parser.parse_args()
    model, prompts = ct.load_model(args.model, device=args.device), ct.load_prompts(args.prompts)
    options = ct.CosmicOptions(mode="linear", n_train=args.n_train, n_val=args.n_val)
    selection = ct.select_cosmic(model, prompts, options)
    d = selection.direction
    plane = class_subspace(model, prompts, d.layer, args.rank, position=d.position, n_train=args.n_train)
    whole: dict[str, Edit] = {
        "ablation": ct.Ablation(d),
        "ACE": ct.AffineEdit(d, alpha=0.0),
        f"subspace of rank {args.rank}": SubspaceEdit(plane, alpha=0.0),
    }
    if args.refine:
        sizes = {"n_train": args.n_train, "n_val": args.n_val, "batch_size": args.refine_batch}
        refined = refine_direction(model, prompts, d, n_steps=args.refine, max_new_tokens=args.max_new_tokens, **sizes)
        print(f"{refined!r}\n", flush=True)
        whole["ablation, refined"] = ct.Ablation(refined.best)
    harmless = prompts.side("negative", "val", args.n_val)
    nats = args.nats or least_kl(model, harmless, [*whole.values()], args.max_new_tokens)
    curves = ct.calibrate(
        model,
        harmless,
        {name: partial(Share, edit) for name, edit in whole.items()},
        nats=nats,
        statistic="mean",
        alphas=(0.5, 1.0),
        max_new_tokens=args.max_new_tokens,
    )
    print(f"{d}\nKL per token on validation prompts: {nats:.3g} nats\n{curves.table.to_string(index=False)}\n")
    shares = dict(zip(curves.table["edit"], curves.table.alpha.astype(float), strict=True))
    counts = {"n": args.n_test, "max_new_tokens": args.max_new_tokens}
    kept: dict[str, Any] = {}
    heads = ["refusals, harmful", "garbled, harmful", "refusals, harmless", "KL(edited ‖ base), first token"]
    heads += ["KL(base ‖ edited), first token", "KL(edited ‖ base) per token"]
    print(f"| edit | share | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 2)}")
    doses = [(name, 1.0) for name in whole] + [(name, shares[name]) for name in whole if shares[name] != 1.0]
    for name, share in doses:
        if isnan(share):
            print(f"| {name} | does not reach this KL |{' |' * len(heads)}")
            continue
        own = dict(kept)
        found = ct.compare_models(model, model, prompts, Share(whole[name], share), kept=own, **counts)
        if not kept:
            print(line("unedited", float("nan"), found, "base"))
        kept = {part: rows for part, rows in own.items() if part.endswith(", base")}  # measured once
        print(line(name, share, found), flush=True)
    if find_spec("peft") is None:
        return
    with TemporaryDirectory() as folder:
        adapter = export_edit(model, ct.Ablation(d), "peft", f"{folder}/adapter").path
        edited = ct.load_model(args.model, adapter=adapter, device=args.device)
        found = ct.compare_models(model, edited, prompts, direction=d, kept=kept, **counts)
    print(line("ablation as a LoRA, merged", 1.0, found))
    print(f"\nThe LoRA's weights: {found.removed.said() if found.removed is not None else found.notes}")


if __name__ == "__main__":
    main()
