"""Passes of the clean model and of edits that share a batch: where they start, what they share, what they give."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.spreading import kept_by_pieces
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.interventions.steer import batched_hooks
from cosmic_tl.model.batching import batches, rows_per_pass, too_many_rows
from cosmic_tl.model.forward import KeysValues, Reached, Resume, TokenBatch, forward
from cosmic_tl.model.hooks import Site
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.shortcuts import Shortcuts, out_of_memory, shared_prefix

PASS_TOKENS = {"cpu": 128, "cuda": 1024}
"""What a pass costs besides its tokens, reading the weights and calling the modules, in tokens, roughly."""


@checked
@dataclass(frozen=True)
class Reading:
    """What a procedure wants to see of a pass."""

    layers: tuple[int, ...] = ()
    """Read `y[l, i]`, the stream that leaves block `l`, at these layers."""
    n_positions: int = 1
    """At this many of the last positions."""
    logits: bool = False
    """And the logits at the last position."""


@checked
@dataclass(frozen=True, eq=False)
class Outcome:
    """What some prompts gave under one edit."""

    rows: tuple[int, ...]
    """Which prompts."""
    resid_post: dict[int, Float[Tensor, "prompt position d_model"]]
    logits: Float[Tensor, "prompt vocab"] | None


@dataclass(frozen=True, eq=False)
class Rows:
    """A batch of prompts, without their common prefix, and the stream that enters the layer under way."""

    tokens: TokenBatch
    stream: Tensor | None = None
    """None before the first block."""

    def __len__(self) -> int:
        return len(self.tokens.rows)

    def halves(self) -> list["Rows"]:
        """Two batches of half as many prompts, or this one if it has only one.

        Example:
            >>> ids = torch.ones(3, 2, dtype=torch.long)
            >>> batch = TokenBatch(ids, ids, (4, 5, 6))
            >>> [half.tokens.rows for half in Rows(batch).halves()]
            [(4, 5), (6,)]
        """
        middle = -(-len(self) // 2)
        return [
            Rows(
                TokenBatch(self.tokens.ids[part], self.tokens.mask[part], self.tokens.rows[part]),
                None if self.stream is None else self.stream[part],
            )
            for part in (slice(0, middle), slice(middle, None))
            if part.start < len(self)
        ]


@dataclass(frozen=True, eq=False)
class Layout:
    """How prompts and edits share passes."""

    n_prefix: int
    """Tokens that all prompts begin with, which are run once per edit."""
    together: int
    """Edits per pass, at most."""
    batches: tuple[TokenBatch, ...]
    """The prompts without these tokens; a pass takes one of these batches under each of its edits."""


def layout(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    n_edits: int,
    n_positions: int = 1,
    batch_size: int | None = None,
) -> Layout:
    """How prompts and edits at the same places share passes.

    Args:
        model: A `TransformerBridge`.
        rows: Token ids of the prompts.
        n_edits: The most edits at the same places.
        n_positions: At how many of the last positions something is read.
        batch_size: Rows (prompts times edits) per pass. Default: by available memory.

    Example:
        >>> from cosmic_tl import load_model
        >>> found = layout(load_model("demo", device="cpu"), [[5, 6, 7], [5, 8]] * 40, n_edits=5)
        >>> found.n_prefix, found.together, [tuple(batch.ids.shape) for batch in found.batches]
        (1, 5, [(40, 1), (40, 2)])
    """
    n_prefix = shared_prefix(model, rows, n_positions)
    own = [row[n_prefix:] for row in rows]
    size = batch_size or rows_per_pass(model, max(map(len, own)))
    together = max(1, min(n_edits, size // 4))
    overhead = -(-PASS_TOKENS.get(torch.device(str(model.cfg.device)).type, 1024) // together)
    return Layout(n_prefix, together, tuple(batches(model, own, max(1, size // together), overhead)))


@contextmanager
def clean_until(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    reading: Reading,
    allowed: Shortcuts,
    shared: Layout,
    lowest: int,
) -> Iterator["Clean"]:
    """The clean model at `lowest` or below. On a copy that works on pieces, the one that the last piece has left there.

    Args:
        model: A `TransformerBridge`.
        rows: Token ids of the prompts.
        reading: What to read.
        allowed: Shortcuts that the model allows.
        shared: From `layout`.
        lowest: The first layer at which its stream is needed.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl._util.spreading import keeping
        >>> model, rows, kept = load_model("demo", device="cpu"), [[5, 6, 7], [5, 8]], {}
        >>> with keeping(kept):
        ...     for layer in (2, 4):
        ...         with clean_until(model, rows, Reading((6,)), Shortcuts(), layout(model, rows, 1), layer) as clean:
        ...             print(clean.layer)
        ...             clean.advance(layer)
        0
        2
    """
    kept = kept_by_pieces()
    if kept is None:
        yield Clean(model, rows, reading, allowed, shared)
        return
    cuts = tuple((batch.rows, batch.ids.shape[1]) for batch in shared.batches)
    key = tuple(map(tuple, rows)), reading, allowed, shared.n_prefix, cuts
    clean = kept.pop(key, None)
    kept.clear()
    if clean is None or clean.layer > lowest:
        clean = Clean(model, rows, reading, allowed, shared)
    yield clean
    kept[key] = clean  # not after an error, which may have left it half-way


class Clean:
    """The unedited model on the prompts: its stream at one layer, which moves up, and what was read on the way."""

    def __init__(
        self,
        model: TransformerBridge,
        rows: Sequence[Sequence[int]],
        reading: Reading,
        allowed: Shortcuts,
        shared: Layout,
    ) -> None:
        self.model, self.reading, self.allowed = model, reading, allowed
        self.longest = max(map(len, rows)) - shared.n_prefix
        """Of the prompts, without what they share."""
        self.layer = 0
        self.read: dict[int, dict[int, Tensor]] = {layer: {} for layer in reading.layers}
        """What was read, by layer and prompt."""
        self.batches = [Rows(batch) for batch in shared.batches]
        self.prefix = Rows(next(batches(model, [rows[0][: shared.n_prefix]], 1))) if shared.n_prefix else None
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
            self.prefix = Rows(self.prefix.tokens, found.activations[enters])
            past += found.keys_values or ()
        reads: list[tuple[int, Site]] = [(r, "hook_resid_post") for r in self.reading.layers if self.layer <= r < layer]

        def run(batch: Rows) -> Reached:
            start = Resume(self.layer, batch.stream, past)
            return forward(self.model, batch.tokens, [*reads, enters], n_positions=None, resume=start)

        for number, found in self.each(run):
            batch = self.batches[number]
            self.batches[number] = Rows(batch.tokens, found.activations[enters])
            for at, site in reads:
                # A copy, so that the other positions are freed.
                last = found.activations[at, site][:, -self.reading.n_positions :].clone()
                self.read[at] |= dict(zip(batch.tokens.rows, last, strict=True))
        self.past, self.layer = past, layer

    def each(self, run: Callable[[Rows], Reached], start: int = 0) -> Iterator[tuple[int, Reached]]:
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

    def copy(self) -> "Clean":
        """The same at this layer, which stays there when the original moves on."""
        found = copy(self)
        found.batches, found.read = list(self.batches), {at: dict(read) for at, read in self.read.items()}
        return found

    def outcome(self, rows: tuple[int, ...]) -> Outcome:
        """What the clean model gave on some prompts so far."""
        known = {at: torch.stack([read[row] for row in rows]) for at, read in self.read.items() if read}
        return Outcome(rows, known, None)


class Steered:
    """Some edits at the same places, batched from where the clean stream stands."""

    def __init__(self, clean: Clean, edits: Sequence[Interventions], *, prefix: bool = True) -> None:
        self.clean, self.n_edits, reading = clean, len(edits), clean.reading
        self.hooks = batched_hooks(clean.model, edits)
        self.sites: list[tuple[int, Site]] = [(r, "hook_resid_post") for r in reading.layers if r >= clean.layer]
        self.past: KeysValues = ()
        if prefix and clean.prefix is not None:
            last = int(clean.model.cfg.n_layers) - 1 if reading.logits else max(reading.layers)
            found = self._forward(clean.prefix, [(last, "hook_resid_post")], keep_keys_values=True).keys_values or ()
            below = tuple((k.expand(len(edits), -1, -1, -1), v.expand(len(edits), -1, -1, -1)) for k, v in clean.past)
            self.past = below + found

    def run(self, batch: Rows) -> Reached:
        """One pass: the batch under the first edit, under the second, …"""
        return self._forward(batch, self.sites, logits=self.clean.reading.logits)

    def _forward(
        self, batch: Rows, sites: list[tuple[int, Site]], logits: bool = False, keep_keys_values: bool = False
    ) -> Reached:
        clean, times = self.clean, self.n_edits
        return forward(
            clean.model,
            batch.tokens.tiled(times),
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

    def outcomes(self, batch: Rows, reached: Reached) -> list[Outcome]:
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
