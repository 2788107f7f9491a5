"""Passes of many patches on the same prompts."""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl.engine import Outcome, Reading
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.model.batching import batches, rows_per_pass
from cosmic_tl.model.components import check_additive, check_own_parts, output_projection
from cosmic_tl.model.forward import KeysValues, TokenBatch, forward
from cosmic_tl.model.hooks import Site, hook_name, probed, same_for_all_tokens
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.shortcuts import UNFIT, alike, late_start, out_of_memory
from cosmic_tl.patching.change_hooks import hooks_of
from cosmic_tl.patching.changes import SITES, Change, Patch

MOST_ROWS, MOST_PROMPTS = 256, 64
"""Per pass: more copies of keys and values cost more than larger matrix products gain."""


@dataclass(frozen=True, eq=False)
class _Clean:
    """A batch's clean pass."""

    tokens: TokenBatch
    streams: dict[int, Float[Tensor, "prompt position d_model"]]
    """What enters each block, at the last positions."""
    past: KeysValues
    outcome: Outcome


@checked
def patched(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    patches: Sequence[Patch],
    reading: Reading,
    reduce: Callable[[Outcome], Tensor],
    *,
    groups: Sequence[int] | None = None,
    on_clean: Callable[[Outcome], None] | None = None,
    batch_size: int | None = None,
    known: Container[int] = (),
) -> Iterator[tuple[int, Tensor]]:
    """What each of many patches does to the same prompts.

    Args:
        model: A `TransformerBridge`.
        rows: Token ids of the prompts, from `tokenize`.
        patches: Each one on its own.
        reading: What to read, at the last position.
        reduce: Turns what some prompts gave under one patch into what to keep, one entry per prompt.
        groups: For each prompt, which row of a change's targets is its own. Default: its number.
        on_clean: Called with what the unpatched model gives, batch by batch, before any patch.
        batch_size: Rows (prompts times patches) per pass. Default: by available memory, at most 256.
        known: Indices of patches whose results are not needed. Patches share passes as if they were, so that a stopped
            computation goes on with the very same numbers; those that share one with others may still be yielded.

    Yields:
        A patch's index and its `[prompt, …]` tensor on the CPU.

    Raises:
        CosmicError: If nothing is to be read, a position or a layer does not exist, a prompt is shorter than that, or memory
            does not suffice for one patch.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.model.chat import tokenize
        >>> model = load_model("demo", device="cpu")
        >>> zero, unit = torch.zeros(128), torch.eye(128)[0]
        >>> patches = [Patch(-2, (Change(layer, "mlp", zero, unit),)) for layer in range(8)]
        >>> keep = lambda outcome: outcome.resid_post[7][:, -1]
        >>> found = dict(patched(model, tokenize(model, ["hi", "hello"]), patches, Reading((7,)), keep))
        >>> len(found), found[0].shape
        (8, torch.Size([2, 128]))
    """
    if not reading.layers and not reading.logits:
        raise CosmicError("reading: it names no layers and no logits; say what to read")
    if reading.n_positions != 1:
        raise CosmicError(f"reading: found {reading.n_positions} positions; patches are read at the last one")
    check_count("batch_size", batch_size)
    groups = range(len(rows)) if groups is None else groups
    _check(model, rows, patches, groups)
    if not same_for_all_tokens(model):
        raise CosmicError(
            "model: an active intervention depends on the tokens' places, which passes that begin late change; use one on all "
            "tokens"
        )
    deepest = max((-patch.position for patch in patches), default=1)
    resume = starts_late(model)
    try:
        clean = [_clean(model, batch, reading, deepest, resume) for batch in _batches(model, rows, batch_size)]
        if on_clean is not None:
            for one in clean:
                on_clean(one.outcome)
        order = sorted(range(len(patches)), key=lambda i: patches[i].kind)
        for _, group in groupby(order, key=lambda i: patches[i].kind):
            some = {i: patches[i] for i in group}
            yield from _group(model, clean, some, reading, reduce, groups, batch_size, known, resume)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise CosmicError("memory: not enough for these patches; use a smaller batch_size, or fewer prompts") from error


@checked
def unpatched(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    reading: Reading,
    reduce: Callable[[Outcome], Tensor],
    *,
    batch_size: int | None = None,
) -> Tensor:
    """What the clean model gives, to the last bit as `patched` gives it where a patch does not reach.

    Args:
        model: A `TransformerBridge`.
        rows: Token ids of the prompts, from `tokenize`.
        reading: What to read, at the last position.
        reduce: As for `patched`.
        batch_size: As for `patched`.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.model.chat import tokenize
        >>> model = load_model("demo", device="cpu")
        >>> unpatched(model, tokenize(model, ["hi"]), Reading((7,)), lambda outcome: outcome.resid_post[7][:, -1]).shape
        torch.Size([1, 128])
    """
    resume = starts_late(model)
    found = [_clean(model, batch, reading, 1, resume).outcome for batch in _batches(model, rows, batch_size)]
    return _in_order([(outcome.rows, reduce(outcome).cpu()) for outcome in found])


def _batches(model: TransformerBridge, rows: Sequence[Sequence[int]], batch_size: int | None) -> Iterator[TokenBatch]:
    return batches(model, rows, None if batch_size is None else min(batch_size, MOST_PROMPTS), most=MOST_PROMPTS)


def starts_late(model: TransformerBridge) -> bool:
    """Whether a pass that begins at half the depth and at the last tokens, after padded keys and values, is that of a whole
    pass; tried once per model.

    Example:
        >>> from cosmic_tl import load_model
        >>> starts_late(load_model("demo", device="cpu"))
        True
    """

    def probe() -> bool:
        n_layers, rows = int(model.cfg.n_layers), [[1, 2, 3, 4, 5, 6], [1, 3, 5]]
        reading, k = Reading((n_layers - 1,), logits=True), 2
        nothing = torch.zeros(int(model.cfg.d_model))
        patch = Patch(-k, (Change(n_layers // 2, "stream", nothing, nothing),))
        for batch in batches(model, rows, 2):
            try:
                clean = _clean(model, batch, reading, k, True)
                (found,) = _pass(model, clean, [patch], reading, range(2), True)
            except UNFIT as error:
                if out_of_memory(error):
                    raise
                return False
            whole, last = clean.outcome, n_layers - 1
            assert found.logits is not None
            assert whole.logits is not None
            dtype = whole.resid_post[last].dtype
            if not (alike(found.resid_post[last], whole.resid_post[last]) and alike(found.logits, whole.logits, dtype)):
                return False
        return True

    return probed(model, "patches", probe)


def _check(
    model: TransformerBridge, rows: Sequence[Sequence[int]], patches: Sequence[Patch], groups: Sequence[int]
) -> None:
    if len(groups) != len(rows):
        raise CosmicError(f"groups: found {len(groups)}, and there are {len(rows)} prompts; give one for each")
    shortest = min(map(len, rows))
    for patch in patches:
        if -patch.position > shortest:
            raise CosmicError(
                f"position: found {patch.position}, and a prompt has only {shortest} tokens; patch later ones"
            )
        for change in patch.changes:
            hook_name(model, change.layer, SITES[change.part])
            *n, width = change.target.shape
            if width != int(model.cfg.d_model):
                raise CosmicError(f"target: it has width {width}, and the model's stream {int(model.cfg.d_model)}")
            if n and not (len(n) == 1 and 0 <= min(groups) <= max(groups) < n[0]):
                raise CosmicError(
                    f"target: it has shape {(*n, width)}, and prompts are in groups {min(groups)} to {max(groups)}; give a row "
                    "for each"
                )
            if change.index is not None:
                _check_index(model, change.layer, "attention" if change.part == "attention" else "mlp", change.index)
    if any(change.part in ("attention", "mlp") for patch in patches for change in patch.changes):
        check_additive(model)


def _check_index(model: TransformerBridge, layer: int, part: Literal["attention", "mlp"], index: int) -> None:
    n_parts = output_projection(model, layer, part).n_parts
    if not 0 <= index < n_parts:
        raise CosmicError(f"index: found {index}, and block {layer} has {n_parts}; give one of 0 to {n_parts - 1}")
    check_own_parts(model, layer, part)


def _clean(model: TransformerBridge, batch: TokenBatch, reading: Reading, deepest: int, resume: bool) -> _Clean:
    streams: list[tuple[int, Site]] = [(layer, "hook_resid_pre") for layer in range(int(model.cfg.n_layers))]
    read: list[tuple[int, Site]] = [(layer, "hook_resid_post") for layer in reading.layers]
    found = forward(
        model,
        batch,
        [*(streams if resume else []), *read],
        n_positions=deepest,
        logits=True,
        keep_keys_values=resume,
    )
    last = {layer: found.activations[layer, site][:, -1:].clone() for layer, site in read}
    kept = {layer: found.activations[layer, site] for layer, site in streams} if resume else {}
    return _Clean(batch, kept, found.keys_values or (), Outcome(batch.rows, last, found.logits))


def _group(
    model: TransformerBridge,
    clean: Sequence[_Clean],
    patches: dict[int, Patch],
    reading: Reading,
    reduce: Callable[[Outcome], Tensor],
    groups: Sequence[int],
    batch_size: int | None,
    known: Container[int],
    resume: bool,
) -> Iterator[tuple[int, Tensor]]:
    """Patches of one kind, as many at once as fit."""
    some = next(iter(patches.values()))
    last = int(model.cfg.n_layers) - 1 if reading.logits else max(reading.layers)
    if not any(_reaches(change, some.position, last) for change in some.changes):
        kept = _in_order([(one.outcome.rows, reduce(one.outcome).cpu()) for one in clean])
        yield from ((i, kept) for i in patches)
        return
    n = max(len(one.tokens.rows) for one in clean)
    length = -some.position if resume else max(one.tokens.ids.shape[1] for one in clean)
    together = max(1, (batch_size or min(rows_per_pass(model, length), MOST_ROWS)) // n)
    numbers = list(patches)
    for start in range(0, len(numbers), together):
        chunk = numbers[start : start + together]
        if all(i in known for i in chunk):
            continue
        found: dict[int, list[tuple[tuple[int, ...], Tensor]]] = {i: [] for i in chunk}
        for one in clean:
            outcomes = _pass(model, one, [patches[i] for i in chunk], reading, groups, resume)
            for i, outcome in zip(chunk, outcomes, strict=True):
                found[i].append((outcome.rows, reduce(outcome).cpu()))
        yield from ((i, _in_order(parts)) for i, parts in found.items())


def _reaches(change: Change, position: int, last: int) -> bool:
    """Whether a change can be seen at the last token after block `last`, in which other tokens are only looked at."""
    return change.layer < last or (
        change.layer == last and (change.part == "stream" or (change.position or position) == -1)
    )


def _in_order(parts: Sequence[tuple[tuple[int, ...], Tensor]]) -> Tensor:
    by_row = {row: value for rows, values in parts for row, value in zip(rows, values, strict=True)}
    return torch.stack([by_row[row] for row in sorted(by_row)])


def _pass(
    model: TransformerBridge,
    clean: _Clean,
    patches: Sequence[Patch],
    reading: Reading,
    groups: Sequence[int],
    resume: bool,
) -> list[Outcome]:
    """One pass: the first prompt under each patch, the second under each patch, …"""
    times, some = len(patches), patches[0]
    layer = some.first if resume else 0
    tokens, start = clean.tokens.times(times), None
    if resume:
        tokens, start = late_start(clean.tokens, clean.past, layer, clean.streams[layer][:, some.position :], times)
    sites: list[tuple[int, Site]] = [(at, "hook_resid_post") for at in reading.layers if at >= layer]
    reached = forward(
        model,
        tokens,
        sites,
        logits=reading.logits,
        hooks=hooks_of(model, patches, [groups[row] for row in clean.tokens.rows]),
        resume=start,
        last_token_only=resume,
    )
    logits = reached.logits
    return [
        Outcome(
            clean.outcome.rows,
            clean.outcome.resid_post | {at: x[e::times] for (at, _), x in reached.activations.items()},
            None if logits is None else logits[e::times],
        )
        for e in range(times)
    ]
