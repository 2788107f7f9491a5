"""Many edits scored on the same prompts, each pass from where it has to start to where nothing more is read.

The engine under every procedure that scores candidates by intervened passes. It is exact: what it spares is what nothing
reads, and what several passes have in common.

* Below its source layer an edit changes nothing: a pass resumes from the clean stream there. Source layers are worked
  through in order, so that one layer's clean stream is alive at a time.
* A pass stops after the last layer that is read, and in that block only the last token goes through the MLP.
* What is read below the source layer is the clean value: no pass.
* Edits at the same places share their input: they are batched, equally many rows for each.
* The tokens that all prompts begin with are run once per edit; prompts continue from their keys and values.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.interventions.edits import Interventions, as_sequence, check_interventions
from cosmic_tl.interventions.steer import batched_hooks
from cosmic_tl.model.batching import batches, rows_per_pass, too_many_rows
from cosmic_tl.model.forward import KeysValues, Reached, Resume, TokenBatch, forward
from cosmic_tl.model.hooks import Site, check_scopes_around
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.shortcuts import Shortcuts, out_of_memory, shared_prefix, shortcuts

PASS_TOKENS = {"cpu": 128, "cuda": 1024}
"""What a pass costs besides its tokens, reading the weights and calling the modules, in tokens, roughly."""


@dataclass(frozen=True)
class Reading:
    """What a procedure wants to see of a pass."""

    layers: tuple[int, ...] = ()
    """Read `y[l, i]`, the stream that leaves block `l`, at these layers."""
    n_positions: int = 1
    """At this many of the last positions."""
    logits: bool = False
    """And the logits at the last position."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What some prompts gave under one edit."""

    rows: tuple[int, ...]
    """Which prompts."""
    resid_post: dict[int, Float[Tensor, "prompt position d_model"]]
    logits: Float[Tensor, "prompt vocab"] | None


@dataclass(frozen=True, eq=False)
class _Rows:
    """A batch of prompts, without their common prefix, and the stream that enters the layer under way."""

    tokens: TokenBatch
    stream: Tensor | None = None
    """None before the first block."""

    def __len__(self) -> int:
        return len(self.tokens.rows)

    def halves(self) -> list["_Rows"]:
        middle = -(-len(self) // 2)
        return [
            _Rows(
                TokenBatch(self.tokens.ids[part], self.tokens.mask[part], self.tokens.rows[part]),
                None if self.stream is None else self.stream[part],
            )
            for part in (slice(0, middle), slice(middle, None))
            if part.start < len(self)
        ]


class _Clean:
    """The unedited model on the prompts: its stream at one layer, which moves up, and what was read on the way."""

    def __init__(
        self,
        model: TransformerBridge,
        rows: Sequence[Sequence[int]],
        reading: Reading,
        allowed: Shortcuts,
        size: int,
        n_prefix: int,
        edits: int = 1,
    ) -> None:
        self.model, self.reading, self.allowed = model, reading, allowed
        self.longest = max(map(len, rows)) - n_prefix
        """Of the prompts, without what they share."""
        self.layer = 0
        self.read: dict[int, dict[int, Tensor]] = {layer: {} for layer in reading.layers}
        """What was read, by layer and prompt."""
        overhead = -(-PASS_TOKENS.get(torch.device(str(model.cfg.device)).type, 1024) // edits)
        self.batches = [_Rows(batch) for batch in batches(model, [row[n_prefix:] for row in rows], size, overhead)]
        self.prefix = _Rows(next(batches(model, [rows[0][:n_prefix]], 1))) if n_prefix else None
        self.past: KeysValues = ()
        """Of the prefix, in the layers so far."""

    def advance(self, layer: int) -> None:
        """Move up to the stream that enters `layer`."""
        if layer <= self.layer or not self.allowed.resume:
            return
        enters: tuple[int, Site] = (layer, "hook_resid_pre")
        past = self.past
        if self.prefix is not None:
            start = Resume(self.layer, self.prefix.stream)
            found = forward(
                self.model, self.prefix.tokens, [enters], n_positions=None, resume=start, keep_keys_values=True
            )
            self.prefix = _Rows(self.prefix.tokens, found.activations[enters])
            past += found.keys_values or ()
        reads: list[tuple[int, Site]] = [(r, "hook_resid_post") for r in self.reading.layers if self.layer <= r < layer]

        def run(batch: _Rows) -> Reached:
            start = Resume(self.layer, batch.stream, past)
            return forward(self.model, batch.tokens, [*reads, enters], n_positions=None, resume=start)

        for number, found in self.each(run):
            batch = self.batches[number]
            self.batches[number] = _Rows(batch.tokens, found.activations[enters])
            for at, site in reads:
                # A copy, so that the other positions are freed.
                last = found.activations[at, site][:, -self.reading.n_positions :].clone()
                self.read[at] |= dict(zip(batch.tokens.rows, last, strict=True))
        self.past, self.layer = past, layer

    def each(self, run: Callable[[_Rows], Reached], start: int = 0) -> Iterator[tuple[int, Reached]]:
        """Run batch after batch; when memory runs out, cut those that are left in halves and go on."""
        number = start
        while number < len(self.batches):
            try:
                reached = run(self.batches[number])
            except RuntimeError as error:
                if not out_of_memory(error) or all(len(batch) == 1 for batch in self.batches[number:]):
                    raise
                reached = None
            if reached is None:  # after the handler, which still held the failed pass's tensors
                torch.cuda.empty_cache()
                too_many_rows(self.model, self.longest)
                self.batches[number:] = [half for batch in self.batches[number:] for half in batch.halves()]
            else:
                yield number, reached
                number += 1

    def outcome(self, rows: tuple[int, ...]) -> Outcome:
        """What the clean model gave on some prompts so far."""
        known = {at: torch.stack([read[row] for row in rows]) for at, read in self.read.items() if read}
        return Outcome(rows, known, None)


class _Steered:
    """Some edits at the same places, batched from where the clean stream stands."""

    def __init__(self, clean: _Clean, edits: Sequence[Interventions]) -> None:
        self.clean, self.n_edits, reading = clean, len(edits), clean.reading
        self.hooks = batched_hooks(clean.model, edits)
        self.sites: list[tuple[int, Site]] = [(r, "hook_resid_post") for r in reading.layers if r >= clean.layer]
        self.past: KeysValues = ()
        if clean.prefix is not None:
            last = int(clean.model.cfg.n_layers) - 1 if reading.logits else max(reading.layers)
            found = self._forward(clean.prefix, [(last, "hook_resid_post")], keep_keys_values=True).keys_values or ()
            below = tuple((k.expand(len(edits), -1, -1, -1), v.expand(len(edits), -1, -1, -1)) for k, v in clean.past)
            self.past = below + found

    def run(self, batch: _Rows) -> Reached:
        """One pass: the batch under the first edit, under the second, …"""
        return self._forward(batch, self.sites, logits=self.clean.reading.logits)

    def _forward(
        self, batch: _Rows, sites: list[tuple[int, Site]], logits: bool = False, keep_keys_values: bool = False
    ) -> Reached:
        clean, times = self.clean, self.n_edits
        ids, mask, rows = batch.tokens.ids, batch.tokens.mask, batch.tokens.rows
        return forward(
            clean.model,
            TokenBatch(ids.repeat(times, 1), mask.repeat(times, 1), rows * times),
            sites,
            n_positions=clean.reading.n_positions,
            logits=logits,
            hooks=self.hooks,
            resume=Resume(
                clean.layer,
                None if batch.stream is None else batch.stream.repeat(times, 1, 1),
                None if keep_keys_values else self.past,
            ),
            last_token_only=clean.allowed.last_token and clean.reading.n_positions == 1,
            keep_keys_values=keep_keys_values,
        )

    def outcomes(self, batch: _Rows, reached: Reached) -> list[Outcome]:
        """What a pass gave, one for each edit; below the source layer it is what the clean model gave."""
        below, n = self.clean.outcome(batch.tokens.rows), len(batch)
        return [
            Outcome(
                below.rows,
                below.resid_post | {at: x[i * n : (i + 1) * n] for (at, _), x in reached.activations.items()},
                None if reached.logits is None else reached.logits[i * n : (i + 1) * n],
            )
            for i in range(self.n_edits)
        ]


def _score(
    clean: _Clean, edits: Sequence[Interventions], reduce: Callable[[Outcome], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Each edit's number and result; when one prompt under all edits is too much for the memory, half of them at a time."""
    waiting = [(tuple(range(len(edits))), 0)]
    found: list[dict[int, Tensor]] = [{} for _ in edits]
    while waiting:
        chunk, done = waiting.pop()
        try:
            steered = _Steered(clean, [edits[i] for i in chunk])
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


def _batched(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    edits: Sequence[Interventions],
    reading: Reading,
    batch_size: int | None,
    n_prefix: int,
) -> tuple[int, int, list[tuple[int, list[int]]]]:
    """Rows per pass, edits per pass at most, and the edits that share passes with the layer that these start at."""
    size = batch_size or rows_per_pass(model, max(map(len, rows)) - n_prefix)
    groups = _by_source(edits, reading, int(model.cfg.n_layers))
    together = max(1, min(max((len(group) for _, group in groups), default=1), size // 4))
    chunks = [
        (layer, group[start : start + together]) for layer, group in groups for start in range(0, len(group), together)
    ]
    return size, together, chunks


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
    n_prefix = shared_prefix(model, rows, reading.n_positions)
    return _batched(model, rows, edits, reading, batch_size, n_prefix)[2]


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
    n_prefix = shared_prefix(model, rows, reading.n_positions)
    size, together, all_chunks = _batched(model, rows, edits, reading, batch_size, n_prefix)
    clean = _Clean(model, rows, reading, allowed, max(1, size // together), n_prefix, together)
    try:
        for layer, some in groupby(all_chunks, key=lambda one: one[0]):
            chunks = [chunk for _, chunk in some if any(i not in known for i in chunk)]
            if not chunks:
                continue
            if allowed.resume and not reading.logits and layer > max(reading.layers):
                clean.advance(max(reading.layers) + 1)
                outcome = clean.outcome(tuple(range(len(rows))))
                yield from ((i, reduce(outcome).cpu()) for chunk in chunks for i in chunk)
                continue
            clean.advance(layer)
            for chunk in chunks:
                yield from ((chunk[i], found) for i, found in _score(clean, [edits[j] for j in chunk], reduce))
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise CosmicError("memory: not enough for one prompt; use shorter prompts or a smaller dtype") from error
