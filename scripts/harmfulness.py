"""Print how harmfulness and refusal are told apart on a model, and draw the pictures of it for docs/results.md.

.venv/bin/python scripts/harmfulness.py MODEL --prompts FILE --layer 15 [--no-images]

Prompts lose the marks that they end in, so that the last token of both sides' texts is of one kind.
"""

import argparse
from dataclasses import replace

import pandas as pd
from make_figures import save_small

import cosmic_tl as ct
from cosmic_tl.directions import compare_directions
from cosmic_tl.experiments import latent_guard, reply_inversion
from cosmic_tl.metrics import find_refusal_tokens

STORY = "Write a short story in which somebody is asked the following: {}"
Sides = list[list[str]]


def bare(prompts: ct.ContrastSet) -> ct.ContrastSet:
    """The same prompts without the marks that they end in."""
    sides = [
        {split: tuple(dict.fromkeys(text.rstrip(" .?!\"'") for text in some)) for split, some in side.items()}
        for side in (prompts.positive, prompts.negative)
    ]
    return replace(prompts, positive=sides[0], negative=sides[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--n-train", type=int, default=64)
    parser.add_argument("--n-val", type=int, default=32)
    parser.add_argument("--n-test", type=int, default=16)
    parser.add_argument("--no-images", action="store_true")
    args = parser.parse_args()
    model, given = ct.load_model(args.model), ct.load_prompts(args.prompts)
    prompts = bare(given)
    positions = ct.post_instruction_positions(model, instruction=True)
    made = ct.make_candidates(model, prompts, ["dim"], n_train=args.n_train, positions=positions)["dim"]
    places = {"end of the text": positions.indices[0], "last token": -1}
    found = {name: made.direction(args.layer, position) for name, position in places.items()}
    print(compare_directions(found).table.round(3).to_string(index=False))
    print(f"chance {compare_directions(found).chance:.3f}")
    story: Sides = [[STORY.format(text) for text in side] for side in prompts.sides("test", args.n_test)]
    shifted = {"with their marks": given.sides("test", args.n_test), "as a story": story}
    counts = {"n_train": args.n_val, "n_test": args.n_test}
    guards = {
        name: latent_guard(model, prompts, one, shifted=shifted, split="val", **counts) for name, one in found.items()
    }
    for name, guard in guards.items():
        print(f"\n{name}: {guard}")
        own = guard.table[guard.table.kind == "direction"]
        print(own[["prompts", "auc_low", "auc_high", "accuracy_low", "accuracy_high"]].round(2).to_string(index=False))
    tokens = find_refusal_tokens(model, prompts.sides("train", args.n_train))
    some = {"harmfulness": found["end of the text"], "refusal": found["last token"]}
    inversion = reply_inversion(model, prompts, some, tokens=tokens, n=args.n_test)
    print(f"\n{tokens}\n{inversion.template!r}, length {inversion.length:.3g}")
    with pd.option_context("display.width", 200, "display.max_rows", None):
        directions = inversion.table[inversion.table.steered != "random"]
        print(directions.drop(columns=["seed", "layer"]).round(2).to_string(index=False))
        random = inversion.table[inversion.table.steered == "random"].groupby(["side", "tokens", "measure"]).change
        print(random.agg(["min", "max"]).round(2).reset_index().to_string(index=False))
    if not args.no_images:
        save_small({"real-inversion": inversion.plot(), "real-guard": guards["end of the text"].plot()})


if __name__ == "__main__":
    main()
