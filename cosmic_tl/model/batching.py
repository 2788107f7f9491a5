"""Left-padded batches, the effect of padding on a model, and the number of rows per pass."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from cosmic_tl.errors import check_count
from cosmic_tl.model.forward import TokenBatch, read, tiny_batch
from cosmic_tl.model.hooks import Site, hooks_around, probed

BATCH_SIZE = 32
"""The largest default number of prompts per forward pass."""
Sizes = MutableMapping[tuple[str, int], int]
"""Kind of device and length of the prompts in tokens to the number of rows per pass."""
_NO_SIZES: Sizes = {}
_sizes: ContextVar[Sizes] = ContextVar("sizes", default=_NO_SIZES)
LOGIT_BYTES = 2**30
"""The largest default size of the float32 logits of one pass, in bytes."""


def batches(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    size: int | None = None,
    overhead: int | None = None,
    n_logits: int = 1,
    most: int = BATCH_SIZE,
) -> Iterator[TokenBatch]:
    """Left-padded batches of prompts of similar length; of equal length if the model does not mask padding.

    Args:
        model: Gives the padding token and the device.
        rows: Token ids from `tokenize`.
        size: Maximum number of prompts per batch. Default: by memory, at most `most`.
        overhead: Cost of a pass in addition to its tokens, in tokens; prompts are then split so that padding and passes
            together cost least. By default every batch but the last has `size` prompts, unless the model takes no
            padding (`masks_padding`).
        n_logits: Positions per row at which logits are read, which the default size depends on.
        most: The largest default size. Default 32.

    Raises:
        CosmicError: If `size` is not positive.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> batch = next(batches(model, [[5, 6, 7], [8]], size=2))
        >>> batch.mask.tolist(), batch.rows
        ([[0, 0, 1], [1, 1, 1]], (1, 0))
        >>> [batch.rows for batch in batches(model, [[5, 6, 7], [8]], size=2, overhead=1)]
        [(1,), (0,)]
    """
    check_count("batch_size", size)
    paddable = len({len(row) for row in rows}) == 1 or masks_padding(model)
    pad = model.tokenizer.pad_token_id if model.tokenizer is not None else None
    device = torch.device(str(model.cfg.device))
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    fitting = cache(lambda longest: size or _default_size(model, longest, n_logits, most))
    for start, end in _cuts([len(rows[i]) for i in order], fitting, overhead, paddable):
        chosen = order[start:end]
        width = len(rows[chosen[-1]])
        ids = torch.full((len(chosen), width), 0 if pad is None else pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(chosen):
            ids[i, width - len(rows[row]) :] = torch.tensor(rows[row])
            mask[i, width - len(rows[row]) :] = 1
        yield TokenBatch(ids.to(device), mask.to(device), tuple(chosen))


def _default_size(model: TransformerBridge, longest: int, n_logits: int, most: int) -> int:
    fit = LOGIT_BYTES // (4 * n_logits * int(model.cfg.d_vocab))
    if torch.device(str(model.cfg.device)).type == "cuda":
        fit = min(fit, rows_per_pass(model, longest + n_logits))  # logits may belong to tokens after these
    return max(1, min(most, fit))


def _cuts(
    lengths: Sequence[int], most: Callable[[int], int], overhead: int | None, paddable: bool
) -> list[tuple[int, int]]:
    """Where to split prompts, sorted by length, into batches; `most` of some length fit into one."""
    cuts: list[tuple[int, int]] = []
    if overhead is None:
        start = 0
        while start < len(lengths):
            last = len(lengths) if paddable else bisect_right(lengths, lengths[start])
            end = start + 1
            while end < last and end - start < most(lengths[end]):
                end += 1
            cuts.append((start, end))
            start = end
        return cuts
    # The cheapest split of the first prompts, one prompt more at a time.
    cheapest = [(0, 0)]
    for end, longest in enumerate(lengths, 1):
        first = max(0 if paddable else bisect_left(lengths, longest), end - most(longest))
        cheapest.append(
            min((cheapest[start][0] + (end - start) * longest + overhead, start) for start in range(first, end))
        )
    end = len(lengths)
    while end:
        cuts.append((cheapest[end][1], end))
        end = cuts[-1][0]
    return cuts[::-1]


def masks_padding(model: TransformerBridge) -> bool:
    """Whether padding before a prompt leaves its activations unchanged.

    Attention masks padding. A recurrent model may take it into its state: RWKV and RecurrentGemma's convolution ignore
    the mask. A recurrent model is therefore tried once, on a short row beside a long one. If a surrounding intervention
    (`steering`) has a mask of tokens, padding would shift the tokens under it.

    Example:
        >>> from cosmic_tl import load_model
        >>> masks_padding(load_model("demo", device="cpu"))
        True
    """
    if not getattr(model.adapter, "supports_batched_generation", True):
        return False
    if any(isinstance(getattr(hook, "tokens", None), Tensor) for hook in hooks_around(model)):
        return False
    if not getattr(model.original_model, "_is_stateful", False):
        return True

    def probe() -> bool:
        short = tiny_batch(model)
        n, device = short.ids.shape[1], short.ids.device
        ids, mask = torch.arange(1, 3 * n + 1, device=device).repeat(2, 1), torch.ones(2, 3 * n, device=device).long()
        ids[0, -n:], mask[0, :-n] = short.ids[0], 0
        site: tuple[int, Site] = (int(model.cfg.n_layers) - 1, "hook_resid_post")
        padded, alone = (
            read(model, batch, [site], n_positions=n)[site][0].float()
            for batch in (TokenBatch(ids, mask, (0, 1)), short)
        )
        tolerance = 1e-4 if model.cfg.dtype in (torch.float32, torch.float64) else 5e-2
        return bool((padded - alone).norm() <= tolerance * alone.norm())

    return probed(model, "padding", probe)


CPU_TOKENS = 1024
"""Tokens per pass on a CPU; more are not faster."""
CPU_ACTIVATION = 20 * 2**20
"""Bytes of the largest activation of a pass on a CPU. More does not fit into the caches, and from 32 MiB on the
allocator requests new pages from the system each time, which costs more than larger matrix products gain."""


@contextmanager
def sizes_kept(sizes: Sizes) -> Iterator[None]:
    """Decide on the number of rows per pass once for each length of prompts, although the free memory changes.

    Args:
        sizes: Kind of device and length in tokens to number of rows: what is known, to which new ones are added. A mapping
            on disk makes a computation that is stopped go on with the same batches.

    Example:
        >>> from cosmic_tl import load_model
        >>> with sizes_kept({("cpu", 20): 3}):
        ...     rows_per_pass(load_model("demo", device="cpu"), longest=20)
        3
    """
    token = _sizes.set(sizes)
    try:
        yield
    finally:
        _sizes.reset(token)


def too_many_rows(model: TransformerBridge, longest: int) -> None:
    """Keep in mind, within `sizes_kept`, that memory ran out, and half as many rows have to do.

    Example:
        >>> from cosmic_tl import load_model
        >>> sizes = {("cpu", 20): 4}
        >>> with sizes_kept(sizes):
        ...     too_many_rows(load_model("demo", device="cpu"), longest=20)
        >>> sizes
        {('cpu', 20): 2}
    """
    sizes, key = _sizes.get(), (torch.device(str(model.cfg.device)).type, longest)
    if key in sizes:
        sizes[key] = max(1, sizes[key] // 2)


def rows_per_pass(model: TransformerBridge, longest: int) -> int:
    """Number of rows of a given length per pass; within `sizes_kept`, the same as before.

    On a GPU, as many as fit into half of the free memory, by a rough count of a block's largest activations; on a CPU,
    as many as are fast.

    Example:
        >>> from cosmic_tl import load_model
        >>> rows_per_pass(load_model("demo", device="cpu"), longest=20)
        51
    """
    cfg = model.cfg
    device = torch.device(str(cfg.device))
    sizes, key = _sizes.get(), (device.type, longest)
    if key in sizes:
        return sizes[key]
    size, d_mlp = torch.finfo(cfg.dtype).bits // 8, int(cfg.d_mlp or 4 * cfg.d_model)
    tokens = min(CPU_TOKENS, CPU_ACTIVATION // (size * d_mlp))
    if device.type == "cuda":
        per_token = size * (8 * int(cfg.d_model) + 3 * d_mlp)
        per_token += 8 * int(cfg.n_heads) * longest  # scores and their softmax in float32
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        tokens = tokens_that_fit(torch.cuda.mem_get_info(device)[0], cached, per_token)
    found = max(1, tokens // longest)
    if sizes is not _NO_SIZES:
        sizes[key] = found
    return found


def tokens_that_fit(free: int, cached: int, per_token: int) -> int:
    """Number of tokens that fit into half of a GPU's available memory, at most 65,536.

    Args:
        free: Bytes that the driver reports as free.
        cached: Bytes that torch keeps from earlier passes and reuses, which the driver counts as used.
        per_token: Bytes per token.

    Example:
        >>> tokens_that_fit(free=0, cached=1000, per_token=10)
        50
    """
    return min((free + cached) // 2 // per_token, 65_536)
