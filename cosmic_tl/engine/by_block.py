"""Edits on a model whose blocks are read from memory or disk: all passes go through a block before the next one is read.

A pass through the whole model would read every block anew, for every batch of prompts and every few edits. Here the streams of as
many edits as fit are kept between two blocks, so that each block is read once for all of them. The arithmetic of each block on
each batch is the same.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from cosmic_tl.engine.passes import Clean, Outcome, Rows, Steered
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.model.forward import KeysValues, Reached, Resume, forward
from cosmic_tl.model.hooks import Hook, Site
from cosmic_tl.model.offload import block_bytes, loaded, outside_blocks
from cosmic_tl.model.shortcuts import out_of_memory

HELD = 2**28
"""Bytes of streams that are kept between two blocks at least; more if a block's weights take more."""
Chunk = tuple[int, Sequence[int]]
"""A source layer, and the numbers of edits at the same places that share passes."""


class Underway:
    """Edits at the same places, which share passes, between two blocks.

    Args:
        clean: The clean model at their source layer.
        edits: The edits.
    """

    def __init__(self, clean: Clean, edits: Sequence[Interventions]) -> None:
        self.steered = Steered(clean, edits, prefix=False)
        self.model, self.reading, self.allowed = clean.model, clean.reading, clean.allowed
        n = len(edits)
        self.batches = [Rows(one.tokens.tiled(n), _tiled(one.stream, n)) for one in clean.batches]
        self.prompts = [Rows(one.tokens) for one in clean.batches]
        prefix = clean.prefix
        self.kept: dict[int, dict[tuple[int, Site], Tensor]] = {}
        """What was read on the way, by batch."""
        self.prefix = None if prefix is None else Rows(prefix.tokens.tiled(n), _tiled(prefix.stream, n))

    def step(self, layer: int, last: int) -> Iterator[tuple[int, list[Outcome]]]:
        """Take all batches through one block.

        Args:
            layer: The block.
            last: The last block that is read.

        Yields:
            After the last block, a batch's number and what it gave under each edit; before, nothing.

        Example:
            >>> from cosmic_tl import AffineEdit, Direction, load_model
            >>> from cosmic_tl.engine.passes import Reading, layout
            >>> from cosmic_tl.model.shortcuts import Shortcuts
            >>> model, rows = load_model("demo", device="cpu"), [[5, 6, 7], [5, 8]]
            >>> clean = Clean(model, rows, Reading((1,)), Shortcuts(), layout(model, rows, 1))
            >>> edit = AffineEdit(Direction(torch.ones(128), torch.zeros(128), layer=0, position=-1))
            >>> underway = Underway(clean, [edit])
            >>> [len(list(underway.step(layer, last=1))) for layer in (0, 1)]
            [0, 1]
        """
        hooks = [hook for hook in self.steered.hooks if hook[0].startswith(f"blocks.{layer}.")]
        past: KeysValues = ()
        if self.prefix is not None:
            found = self._through(self.prefix, layer, last, hooks, (), prefix=True)
            # Of lower blocks, which do not run, only the number of tokens counts.
            past = (found.keys_values or ()) * (layer + 1)
            self.prefix = Rows(self.prefix.tokens, found.activations.get((layer + 1, "hook_resid_pre")))
        for number, batch in enumerate(self.batches):
            found = self._through(batch, layer, last, hooks, past)
            self.batches[number] = Rows(batch.tokens, found.activations.pop((layer + 1, "hook_resid_pre"), None))
            n = self.reading.n_positions
            for (at, _), activation in found.activations.items():
                # A copy, so that the other positions are freed.
                self.kept.setdefault(number, {})[at, "hook_resid_post"] = activation[:, -n:].clone()
            if layer == last:
                reached = Reached(self.kept.pop(number, {}), found.logits)
                yield number, self.steered.outcomes(self.prompts[number], reached)

    def _through(
        self, batch: Rows, layer: int, last: int, hooks: list[Hook], past: KeysValues, prefix: bool = False
    ) -> Reached:
        """A batch through one block, to what enters the next one: with edits from around, which a resumed pass makes before the
        stream is set, and without our own, which it makes after.
        """
        end = layer == last
        reads: list[tuple[int, Site]] = []
        if layer in self.reading.layers or (prefix and end):
            reads.append((layer, "hook_resid_post"))
        if not end:
            reads.append((layer + 1, "hook_resid_pre"))
        return forward(
            self.model,
            batch.tokens,
            reads,
            n_positions=self.reading.n_positions if end else None,
            logits=self.reading.logits and end and not prefix,
            hooks=hooks,
            resume=Resume(layer, batch.stream, past),
            last_token_only=end and self.allowed.last_token and self.reading.n_positions == 1,
            keep_keys_values=prefix,
        )


def scored_by_block(
    clean: Clean, edits: Sequence[Interventions], chunks: Sequence[Chunk], reduce: Callable[[Outcome], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """What edits do to the same prompts, each block read once for as many of them as have room.

    Args:
        clean: The clean model, at the first chunk's source layer or below.
        edits: All edits.
        chunks: Which of them share passes, in the order of their source layers.
        reduce: Turns what some prompts gave under one edit into what to keep, one entry per prompt.

    Yields:
        An edit's number and its `[prompt, …]` tensor.

    Example:
        >>> from cosmic_tl import AffineEdit, Direction, load_model
        >>> from cosmic_tl.engine.passes import Reading, layout
        >>> from cosmic_tl.model.shortcuts import Shortcuts
        >>> model, rows = load_model("demo", device="cpu"), [[5, 6, 7], [5, 8]]
        >>> clean = Clean(model, rows, Reading((6,)), Shortcuts(), layout(model, rows, 1))
        >>> edits = [AffineEdit(Direction(torch.ones(128), torch.zeros(128), layer, -1)) for layer in (2, 4)]
        >>> keep = lambda outcome: outcome.resid_post[6][:, -1]
        >>> found = dict(scored_by_block(clean, edits, [(2, [0]), (4, [1])], keep))
        >>> found[1].shape
        torch.Size([2, 128])
    """
    model = clean.model
    tokens = sum(batch.tokens.ids.numel() for batch in clean.batches)
    per_edit = tokens * int(model.cfg.d_model) * int(model.cfg.dtype.itemsize)
    room = max(1, max(HELD, block_bytes(model)) // per_edit)
    waiting = _waves(chunks, room)[::-1]
    with loaded(outside_blocks(model, clean.reading.logits)):
        while waiting:
            wave = waiting.pop()
            moving = clean.copy()
            try:
                found = _wave(moving, edits, wave, reduce)
            except RuntimeError as error:
                if not out_of_memory(error) or len(wave) == 1:
                    raise
                middle = len(wave) // 2
                waiting += [wave[middle:], wave[:middle]]
            else:
                vars(clean).update(vars(moving))
                yield from found.items()


def _waves(chunks: Sequence[Chunk], room: int) -> list[Sequence[Chunk]]:
    """Chunks whose edits have room together, one at least."""
    waves: list[list[Chunk]] = []
    held = 0
    for chunk in chunks:
        held += len(chunk[1])
        if not waves or held > room:
            waves.append([])
            held = len(chunk[1])
        waves[-1].append(chunk)
    return [*waves]


def _wave(
    clean: Clean, edits: Sequence[Interventions], chunks: Sequence[Chunk], reduce: Callable[[Outcome], Tensor]
) -> dict[int, Tensor]:
    """What some edits give. Each enters at its source layer, to which the clean stream moves up beside the others."""
    model, reading = clean.model, clean.reading
    last = int(model.cfg.n_layers) - 1 if reading.logits else max(reading.layers)
    advance_by_block(clean, chunks[0][0])
    waiting, underway = list(chunks), list[tuple[Sequence[int], Underway]]()
    found: dict[int, dict[int, Tensor]] = {i: {} for _, chunk in chunks for i in chunk}
    for layer in range(clean.layer, last + 1):
        with loaded([model.blocks[layer]]):
            while waiting and waiting[0][0] <= layer:
                _, chunk = waiting.pop(0)
                underway.append((chunk, Underway(clean, [edits[i] for i in chunk])))
            if waiting:
                clean.advance(layer + 1)
            for chunk, some in underway:
                for _, outcomes in some.step(layer, last):
                    for i, outcome in zip(chunk, outcomes, strict=True):
                        found[i] |= dict(zip(outcome.rows, reduce(outcome).cpu(), strict=True))
    return {i: torch.stack([rows[row] for row in range(len(rows))]) for i, rows in found.items()}


def advance_by_block(clean: Clean, layer: int) -> None:
    """Move the clean stream up to what enters a layer, each block read once.

    Args:
        clean: The clean model.
        layer: To there.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.engine.passes import Reading, layout
        >>> from cosmic_tl.model.shortcuts import Shortcuts
        >>> model, rows = load_model("demo", device="cpu"), [[5, 6, 7], [5, 8]]
        >>> clean = Clean(model, rows, Reading((6,)), Shortcuts(), layout(model, rows, 1))
        >>> advance_by_block(clean, 3)
        >>> clean.layer
        3
    """
    for number in range(clean.layer, layer):
        with loaded([clean.model.blocks[number]]):
            clean.advance(number + 1)


def _tiled(stream: Tensor | None, times: int) -> Tensor | None:
    return None if stream is None else stream.repeat(times, 1, 1)
