"""What many edits do to the same prompts: source layer after source layer, pass after pass."""

from collections.abc import Callable, Container, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl.engine.by_block import advance_by_block, scored_by_block
from cosmic_tl.engine.passes import Clean, Layout, Outcome, Reading, Steered, clean_until, layout
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.interventions.edits import Interventions, as_sequence, check_interventions
from cosmic_tl.model.hooks import check_scopes_around
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.offload import is_offloaded
from cosmic_tl.model.shortcuts import out_of_memory, shortcuts


def _score(
    clean: Clean, edits: Sequence[Interventions], reduce: Callable[[Outcome], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Each edit's number and result; when one prompt under all edits is too much for the memory, half of them at a time."""
    waiting = [(tuple(range(len(edits))), 0)]
    found: list[dict[int, Tensor]] = [{} for _ in edits]
    while waiting:
        chunk, done = waiting.pop()
        try:
            steered = Steered(clean, [edits[i] for i in chunk])
            for number, reached in clean.each(steered.run, done):
                for i, outcome in zip(chunk, steered.outcomes(clean.batches[number], reached), strict=True):
                    found[i] |= dict(zip(outcome.rows, reduce(outcome).cpu(), strict=True))
                done = number + 1
        except RuntimeError as error:
            if not out_of_memory(error) or len(chunk) == 1:
                raise
            middle = len(chunk) // 2
            waiting += [(chunk[middle:], done), (chunk[:middle], done)]
        else:
            for i in chunk:
                yield i, torch.stack([found[i][row] for row in range(len(found[i]))])


def _by_source(edits: Sequence[Interventions], reading: Reading, n_layers: int) -> list[tuple[int, list[int]]]:
    """Edits that can share a batch, by the layer from which they differ from the clean model."""
    # No edit at all is one above everything; what it gives has to be read, though.
    top = n_layers - 1 if reading.logits or n_layers - 1 in reading.layers else n_layers
    places = [tuple(one.place for one in as_sequence(edit)) for edit in edits]
    # Everywhere begins at layer 0, but shares no batch with an edit of that layer alone.
    source = [max(0, min((layer for layer, _ in some), default=top)) for some in places]
    key = lambda i: (source[i], places[i])  # noqa: E731
    return [(layer, list(group)) for (layer, _), group in groupby(sorted(range(len(edits)), key=key), key=key)]


def _arranged(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    edits: Sequence[Interventions],
    reading: Reading,
    batch_size: int | None,
) -> tuple[Layout, list[tuple[int, list[int]]]]:
    """How prompts and edits share passes, and which edits do, with the layer at which their passes start."""
    groups = _by_source(edits, reading, int(model.cfg.n_layers))
    most = max((len(group) for _, group in groups), default=1)
    shared = layout(model, rows, most, reading.n_positions, batch_size)
    together = shared.together
    return shared, [
        (layer, group[start : start + together]) for layer, group in groups for start in range(0, len(group), together)
    ]


@checked
def shared_passes(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    edits: Sequence[Interventions],
    reading: Reading,
    batch_size: int | None = None,
) -> list[tuple[int, list[int]]]:
    """Which edits share passes in `intervened`, in its order: what several processes can divide among themselves.

    Args:
        model: A `TransformerBridge`.
        rows: As for `intervened`, and so is all else.
        edits: The edits.
        reading: What to read.
        batch_size: Rows per pass.

    Returns:
        The layer at which passes start, and the indices of the edits that share them.

    Example:
        >>> from cosmic_tl import AffineEdit, Direction, load_model
        >>> edits = [AffineEdit(Direction(torch.ones(128), torch.zeros(128), layer, -1)) for layer in (4, 3, 4)]
        >>> shared_passes(load_model("demo", device="cpu"), [[5, 6, 7]], edits, Reading((6,)))
        [(3, [1]), (4, [0, 2])]
    """
    return _arranged(model, rows, edits, reading, batch_size)[1]


@checked
def intervened(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    edits: Sequence[Interventions],
    reading: Reading,
    reduce: Callable[[Outcome], Tensor],
    *,
    batch_size: int | None = None,
    known: Container[int] = (),
) -> Iterator[tuple[int, Tensor]]:
    """What each of many edits does to the same prompts, with as little work as gives the exact answer.

    Args:
        model: A `TransformerBridge`.
        rows: Token ids of the prompts, from `tokenize`.
        edits: Each one an intervention or several, on all tokens; an empty one is the clean model.
        reading: What to read, where.
        reduce: Turns what some prompts gave under one edit into what to keep, one entry per prompt.
        batch_size: Rows (prompts times edits) per pass. Default: by available memory. When memory runs out, the rest
            goes on with half as many.
        known: Indices of edits whose results are not needed. Edits are batched as if they were, so that a stopped
            computation goes on with the very same numbers; those that share passes with others may still be yielded.

    Yields:
        An edit's index and its `[prompt, …]` tensor on the CPU, in the order of the source layers.

    Raises:
        CosmicError: If nothing is to be read, a prompt is shorter than the positions, one row alone does not fit into
            memory, or an edit does not fit the model.

    Example:
        >>> from cosmic_tl import AffineEdit, Direction, load_model
        >>> from cosmic_tl.model.chat import tokenize
        >>> model = load_model("demo", device="cpu")
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> edits = [AffineEdit(direction, alpha) for alpha in (0.0, 0.5, 1.0)]
        >>> keep = lambda outcome: outcome.resid_post[6][:, -1]
        >>> found = dict(intervened(model, tokenize(model, ["hi", "hello"]), edits, Reading((6,)), keep))
        >>> found[2].shape
        torch.Size([2, 128])
    """
    if not reading.layers and not reading.logits:
        raise CosmicError("reading: it names no layers and no logits; say what to read")
    if (shortest := min(map(len, rows))) < reading.n_positions:
        raise CosmicError(
            f"positions: {reading.n_positions} asked for, and a prompt has only {shortest} tokens; ask for fewer"
        )
    check_count("batch_size", batch_size)
    check_scopes_around(model)
    check_interventions(model, [one for edit in edits for one in as_sequence(edit)])
    allowed = shortcuts(model, rows)
    shared, chunks = _arranged(model, rows, edits, reading, batch_size)
    chunks = [(layer, chunk) for layer, chunk in chunks if any(i not in known for i in chunk)]
    highest = max(reading.layers, default=-1)
    above = [i for layer, chunk in chunks if allowed.resume and not reading.logits and layer > highest for i in chunk]
    passing = [(layer, chunk) for layer, chunk in chunks if chunk[0] not in above]
    lowest = passing[0][0] if passing else highest + 1
    in_turn = allowed.resume and is_offloaded(model)
    try:
        with clean_until(model, rows, reading, allowed, shared, lowest) as clean:
            if in_turn:
                yield from scored_by_block(clean, edits, passing, reduce)
            else:
                for layer, chunk in passing:
                    clean.advance(layer)
                    yield from ((chunk[i], found) for i, found in _score(clean, [edits[j] for j in chunk], reduce))
            if above:  # what they give is what the clean model gives
                if in_turn:
                    advance_by_block(clean, highest + 1)
                clean.advance(highest + 1)
                outcome = clean.outcome(tuple(range(len(rows))))
                yield from ((i, reduce(outcome).cpu()) for i in above)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise CosmicError("memory: not enough for one prompt; use shorter prompts or a smaller dtype") from error
