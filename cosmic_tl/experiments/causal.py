"""Causal maps: which layers and tokens make the model do it, by exchanging what they write with the other class's."""

from collections.abc import Sequence
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl.data.contrast_set import SIDES, Prompts, labels_of
from cosmic_tl.directions.direction import Direction, random_direction
from cosmic_tl.engine import Outcome, Reading
from cosmic_tl.errors import CosmicError
from cosmic_tl.experiments.causal_measures import Measures
from cosmic_tl.experiments.causal_prompts import exchanged_prompts
from cosmic_tl.experiments.causal_result import CausalMap
from cosmic_tl.experiments.causal_statistics import COLUMNS, Place, summarized
from cosmic_tl.experiments.conditions import terms_of
from cosmic_tl.experiments.exchange import each_of, mean_of, patches_of, written
from cosmic_tl.experiments.options import CausalOptions, CausalPart, Span, TokenSpan, Treatment
from cosmic_tl.metrics.refusal_score import RefusalTokens
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import post_instruction_positions
from cosmic_tl.patching import patched, unpatched
from cosmic_tl.selection.result import Selection
from cosmic_tl.selection.scores import Products


@checked
def causal_map(
    model: TransformerBridge,
    prompts: Prompts,
    selection: Selection | Direction,
    *,
    tokens: RefusalTokens | None = None,
    evaluation_layers: Sequence[int] | None = None,
    treatment: Treatment = "interchange",
    part: CausalPart = "block",
    span: Span = "at",
    token_span: TokenSpan = "at",
    layers: Sequence[int] | None = None,
    n_train: int | None = None,
    n_val: int | None = None,
    n_positions: int | None = None,
    n_placebos: int = 1,
    whole: bool = True,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    effects: Products | None = None,
) -> CausalMap:
    """Where a concept acts: exchange what each layer writes at each token, along the direction, and see what the model then does.

    At one token, what a part of a block writes is given the other class's mean component along `r̂` ("interchange"), that of the
    prompt's counterpart ("paired"), or none ("removal"). Positive prompts are moved towards the negative class, which releases
    the behaviour; negative prompts towards the positive one, which restores it. The two need not have the same places. Beside the
    direction stand two references: the *whole* activation, replaced by the other class's mean (or the counterpart's activation)
    there, and *placebos*, the same displacement of every token in a random direction. All are exact: passes begin at the changed
    token, on clean keys and values (`cosmic_tl.patching`).

    Other classes' means come from training prompts, effects from validation prompts; of a pair of lists both from these.
    Intervals are over the prompts.

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set, or a pair of lists, which then also give the means.
        selection: What was chosen, with its evaluation layers and refusal tokens; or a bare direction.
        tokens: Whose log-odds are a measure. Default those of the selection, if it has any.
        evaluation_layers: Where cosines are a measure. Default those of the selection, if it has any; empty for none.
        treatment: "interchange" (default); "paired", on a contrast set's own pairs (`ContrastSet.contrast`) or on two lists of
            one length; or "removal", which does not touch negative prompts.
        part: What is exchanged: what the whole "block" adds (default), what its "attention", its "mlp" or each single "head"
            adds, or the "stream" that enters it, with all that was written before (the last two "at" one layer alone).
        span: One layer "at" a time (default), all layers "up-to" each, or all "from" it on. At each of them the placebo moves
            what is written as far as its own component along `r̂` differs.
        token_span: One token "at" a time (default), or all "from" it on, which says how many of the last tokens suffice
            (`CausalMap.fewest_tokens`).
        layers: Layers of the map. Default all; single heads need some, such as those where attention as a whole does most.
        n_train: Training prompts per side, of a contrast set. Default all. None are needed for pairs.
        n_val: Validation prompts, or pairs, per side. Default all.
        n_positions: How many of the last positions. Default every post-instruction token.
        n_placebos: Random directions. Default 1.
        whole: Whether to replace whole activations too. Default True.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows (prompts times patches) per pass. Default: by available memory.
        seed: Of the placebos and the resampling. Default 0.
        effects: What is already known, by layer, position and a name of treatment and head; new ones are put in as they
            come, so that a mapping that writes them down makes the map resumable. Of the same arguments only.

    Raises:
        CosmicError: If there is nothing to measure, a number is out of range, the set has no pairs and they are asked for, the
            direction does not fit the model, or its heads do not write to the stream themselves.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> direction = Direction(torch.ones(128), None, layer=3, position=-1)
        >>> found = causal_map(model, prompts, direction, evaluation_layers=(6,), n_train=4, n_val=2, n_positions=1)
        >>> found.measures, len(found.table)  # 2 sides, 2 measures, 3 treatments, 8 layers
        (['cosine', 'kl'], 96)
    """
    asked = CausalOptions(
        treatment=treatment,
        part=part,
        span=span,
        token_span=token_span,
        layers=None if layers is None else tuple(layers),
        n_positions=n_positions,
        n_placebos=n_placebos,
        whole=whole,
        seed=seed,
    )
    given = selection if isinstance(selection, Selection) else None
    direction = selection.direction if isinstance(selection, Selection) else selection
    direction.check(model)
    if given is not None:
        tokens = given.tokens if tokens is None else tokens
        evaluation_layers = given.evaluation_layers if evaluation_layers is None else evaluation_layers
    n_layers = int(model.cfg.n_layers)
    mapped, at = mapped_layers(model, layers), tuple(sorted(set(evaluation_layers or ())))
    if at and not 0 <= at[0] <= at[-1] < n_layers:
        raise CosmicError(f"evaluation_layers: found {at}; give some of 0 to {n_layers - 1}")
    if tokens is None and not at:
        raise CosmicError(
            "tokens: a bare direction comes without anything to measure; give tokens, evaluation_layers or a selection"
        )
    positions = post_instruction_positions(model, chat, n_positions)
    train, val = exchanged_prompts(prompts, treatment, n_train, n_val)
    rows = [tokenize(model, side, chat) for side in val]
    counts, everything = (len(rows[0]), len(rows[1])), [*rows[0], *rows[1]]
    of_side = [0] * counts[0] + [1] * counts[1]
    n_changed = counts[0] if treatment == "removal" else len(everything)
    measures = Measures(of_side, tokens, at)
    if at and n_changed < len(everything):  # prompts that are not changed, and that others are compared with

        def keep(outcome: Outcome) -> Tensor:
            measures.keep(outcome, n_changed)
            return outcome.resid_post[at[0]][:, -1, :1]

        unpatched(model, everything[n_changed:], Reading(at), keep, batch_size=batch_size)
    reach = {"at": mapped, "up-to": range(mapped[-1] + 1), "from": range(mapped[0], n_layers)}[span]
    write = partial(written, model, part=part, layers=reach, n_positions=len(positions), batch_size=batch_size)
    other = [tokenize(model, side, chat) for side in reversed(train)]
    if treatment == "paired":
        values, groups = each_of(write([*other[0], *other[1]])), list(range(n_changed))
    else:
        groups = of_side[:n_changed]
        means = [mean_of(write(side)) for side in other[: 1 + max(groups)]]
        values = {layer: torch.cat([one[layer] for one in means], dim=-2) for layer in reach}
    random = [random_direction(direction, seed + k).unit for k in range(n_placebos)]
    changes = list(patches_of(values, direction.unit, random, asked, mapped, positions.indices))
    keys = [(place[0], place[1], _name(treated, place)) for treated, place, _ in changes]
    effects = {} if effects is None else effects
    known = {i for i, key in enumerate(keys) if key in effects}
    with track(len(changes), "places") as advance:
        advance(len(known))
        for i, effect in patched(
            model,
            everything[:n_changed],
            [patch for _, _, patch in changes],
            Reading(at, logits=True),
            measures,
            groups=groups,
            on_clean=measures.keep,
            batch_size=batch_size,
            known=known,
        ):
            if i not in known:
                effects[keys[i]] = effect.float()
                advance(1)
    names = [name for name, wanted in (("score", tokens is not None), ("cosine", at), ("kl", True)) if wanted]
    tables, shares = [], []
    for side, ends in zip(SIDES, (slice(counts[0]), slice(counts[0], n_changed)), strict=True):
        if ends.start == n_changed:
            continue
        found: dict[tuple[str, Place], list[Tensor]] = {}
        for (treated, place, _), key in zip(changes, keys, strict=True):
            found.setdefault((treated.partition(" ")[0], place), []).append(effects[key][ends].double())
        one, other = summarized({key: torch.stack(some).mean(0) for key, some in found.items()}, names, seed)
        tables.append(one.assign(side=side))
        shares.append(other.assign(side=side))
    table, share = pd.concat(tables, ignore_index=True), pd.concat(shares, ignore_index=True)
    terms = terms_of(None, labels_of(prompts))
    where = [name for name in COLUMNS if name in table]
    table = table[["side", "measure", "treatment", *where, "effect", "low", "high"]]
    share = share.reindex(columns=["side", "measure", *where, "share", "low", "high"])
    return CausalMap(table, share, part, treatment, span, positions, counts, terms, token_span)


def _name(treatment: str, place: Place) -> str:
    """What an effect is called where it is kept."""
    return ", ".join([treatment, *(f"head {head}" for head in place[2:])])


def mapped_layers(model: TransformerBridge, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers of a map: all, or those that are named.

    Raises:
        CosmicError: If there is no such layer.

    Example:
        >>> from cosmic_tl import load_model
        >>> mapped_layers(load_model("demo", device="cpu"), (4, 2))
        (2, 4)
    """
    n_layers = int(model.cfg.n_layers)
    found = tuple(range(n_layers)) if layers is None else tuple(sorted(set(layers)))
    if not 0 <= found[0] <= found[-1] < n_layers:
        raise CosmicError(f"layers: found {found}; give some of 0 to {n_layers - 1}")
    return found
