"""What a selection goes by, whatever the candidates: prompts, their tokens, means of activations, refusal tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cosmic_tl.activations import MeanActivations, class_means
from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.directions.difference_in_means import difference_in_means
from cosmic_tl.directions.generators import make_candidates
from cosmic_tl.directions.names import DIM
from cosmic_tl.errors import CosmicError
from cosmic_tl.metrics.refusal_score import RefusalTokens, find_refusal_tokens, keep_own, refusal_tokens
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import Positions
from cosmic_tl.selection.filters import check_places, positions_of
from cosmic_tl.selection.options import CommonOptions


@dataclass(frozen=True, eq=False)
class Prepared:
    """The data of a selection."""

    val: tuple[list[str], list[str]]
    rows: tuple[list[list[int]], list[list[int]]]
    """Token ids of the validation prompts."""
    positions: Positions
    means: tuple[MeanActivations, MeanActivations]
    train: tuple[list[str], list[str]] | None
    """Training prompts, where they were needed."""
    tokens: RefusalTokens | None
    left_out: tuple[str, ...]
    """Which prompts are not used, in sentences."""
    candidates: Mapping[str, Candidates]
    """By generator."""


def prepare(
    model: TransformerBridge,
    prompts: ContrastSet,
    options: CommonOptions,
    candidates: Candidates | Mapping[str, Candidates] | None,
    *,
    find_tokens: bool,
    chat: ChatFormat | None,
    batch_size: int | None,
    means: tuple[MeanActivations, MeanActivations] | None,
    seeds: Sequence[int],
) -> Prepared:
    """Split, filter and tokenize the prompts, take their means, and make the candidates that are not given.

    Args:
        model: A `TransformerBridge`.
        prompts: The concept's contrast set.
        options: The selection's.
        candidates: Those that were given, if any.
        find_tokens: Whether refusal tokens are needed even where no prompt is filtered.
        chat: Formatting.
        batch_size: Prompts per forward pass.
        means: Training means, if already taken.
        seeds: Of the random labels of placebos.

    Raises:
        CosmicError: If a split is empty or nothing is left of it, or candidates do not fit the model.
    """
    given = {"": candidates} if isinstance(candidates, Candidates) else candidates or {}
    if given and options.directions != (DIM,):
        raise CosmicError(
            f"directions: found {','.join(options.directions)} beside candidates, which are taken as they are; give one of them"
        )
    places = [positions_of(model, one, options, chat) for one in given.values()] or [
        positions_of(model, None, options, chat)
    ]
    for name, one in zip(given, places, strict=False):
        if one.labels != places[0].labels:
            raise CosmicError(
                f"candidates: {name!r} has the columns {', '.join(one.labels)} and {next(iter(given))!r} "
                f"{', '.join(places[0].labels)}; give all generators the same"
            )
    check_places(int(model.cfg.n_layers), len(places[0]), options)
    val = prompts.sides("val", options.n_val)
    makes = not given and set(options.directions) != {DIM}
    train = None
    if means is None or find_tokens or options.filter_prompts or makes:
        train = prompts.sides("train", options.n_train)
    tokens = None if options.tokens is None else refusal_tokens(model, options.tokens)
    if tokens is None and (find_tokens or options.filter_prompts):
        assert train is not None
        tokens = find_refusal_tokens(model, train, chat=chat, batch_size=batch_size)
    left_out: tuple[str, ...] = ()
    if options.filter_prompts:
        assert tokens is not None
        assert train is not None
        train, val, left_out = keep_own(model, train, val, tokens, chat=chat, batch_size=batch_size)
    if means is None:
        assert train is not None
        means = class_means(model, train, positions=places[0], chat=chat, seeds=seeds, batch_size=batch_size)
    if not given:
        left = prompts
        if train is not None:
            left = replace(prompts, positive={"train": tuple(train[0])}, negative={"train": tuple(train[1])})
        given = _made(model, left, options, places[0], means, chat, batch_size)
    rows = tokenize(model, val[0], chat), tokenize(model, val[1], chat)
    return Prepared((val[0], val[1]), rows, places[0], means, train, tokens, left_out, given)


def _made(
    model: TransformerBridge,
    prompts: ContrastSet,
    options: CommonOptions,
    positions: Positions,
    means: tuple[MeanActivations, MeanActivations],
    chat: ChatFormat | None,
    batch_size: int | None,
) -> dict[str, Candidates]:
    """Candidates of the generators that the options name."""
    plain = difference_in_means(*means)
    others = [name for name in options.directions if name != DIM]
    found = {DIM: plain}
    if others:
        made = make_candidates(model, prompts, others, positions=positions, chat=chat, batch_size=batch_size)
        # Placebos of the same prompts, whatever the generator.
        found |= {name: replace(some, shuffled=plain.shuffled) for name, some in made.items()}
    return {name: found[name] for name in options.directions}
