"""Which parts of a pass can be skipped on a model without changing the result."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from cosmic_tl.model.batching import batches
from cosmic_tl.model.forward import KeysValues, Reached, Resume, TokenBatch, forward
from cosmic_tl.model.hooks import Site, probed, same_for_all_tokens
from cosmic_tl.model.weightless import is_on_paper

WORTH_SHARING = 64
"""Tokens that a shared prefix must save to be worth its own pass."""


UNFIT = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a pass raises on an architecture that cannot do it this way."""


@dataclass(frozen=True)
class Shortcuts:
    """Shortcuts that do not change the result."""

    resume: bool = True
    """Start at the source layer."""
    last_token: bool = True
    """In the last block, compute the MLP for the last token only."""
    prefix: bool = True
    """Run the tokens that all prompts begin with once per edit."""


NONE = Shortcuts(False, False, False)


def shared_prefix(model: TransformerBridge, rows: Sequence[Sequence[int]], n_positions: int = 1) -> int:
    """Number of leading tokens to run once for all prompts: those they share, except positions that are read.

    0 if that saves too little, if it does not reproduce the model's result (`shortcuts`), or if a sliding window is
    shorter than the prompts, since padding between prefix and prompt would count in the window.

    Args:
        model: A `TransformerBridge`.
        rows: Token ids of the prompts.
        n_positions: How many of the last positions are read. Default 1.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> shared_prefix(model, [[1, 2, 3, 4], [1, 2, 3, 5]] * 40), shared_prefix(model, [[1, 2, 3], [1, 2, 4]])
        (3, 0)
    """
    shared = _common(model, rows, n_positions)
    return shared if shared * (len(rows) - 1) >= WORTH_SHARING and shortcuts(model, rows).prefix else 0


def prefix_keys_values(model: TransformerBridge, tokens: Sequence[int]) -> KeysValues:
    """Keys and values of the tokens that prompts begin with, for `Resume.past`; None for no tokens.

    Example:
        >>> from cosmic_tl import load_model
        >>> keys, values = prefix_keys_values(load_model("demo", device="cpu"), [5, 6, 7])[0]
        >>> keys.shape
        torch.Size([1, 2, 3, 32])
    """
    if not tokens:
        return ()
    last: tuple[int, Site] = (int(model.cfg.n_layers) - 1, "hook_resid_post")
    return forward(model, next(batches(model, [tokens], 1)), [last], keep_keys_values=True).keys_values or ()


def late_start(
    tokens: TokenBatch, keys_values: KeysValues, layer: int, stream: Float[Tensor, "batch position d_model"], times: int
) -> tuple[TokenBatch, Resume]:
    """How to go on from a layer at the last tokens alone, on what a clean pass left behind.

    Args:
        tokens: Of the clean pass.
        keys_values: All of its keys and values.
        layer: The first block to run.
        stream: What enters it, at the last tokens.
        times: Copies of each row, one after the other.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> batch = next(batches(model, [[5, 6, 7]], 1))
        >>> sites = [(4, "hook_resid_pre"), (7, "hook_resid_post")]
        >>> clean = forward(model, batch, sites, n_positions=2, keep_keys_values=True)
        >>> last, start = late_start(batch, clean.keys_values, 4, clean.activations[sites[0]], times=3)
        >>> found = forward(model, last, sites[1:], n_positions=2, resume=start).activations[sites[1]]
        >>> found.shape, torch.allclose(found[2], clean.activations[sites[1]][0], atol=1e-4)
        (torch.Size([3, 2, 128]), True)
    """
    n = stream.shape[1]
    before = tokens.mask[:, :-n]
    past = tuple((keys[:, :, :-n], values[:, :, :-n]) for keys, values in keys_values) if before.shape[1] else ()
    last = TokenBatch(tokens.ids[:, -n:], tokens.mask[:, -n:], tokens.rows).times(times)
    return last, Resume(layer, stream.repeat_interleave(times, 0), past, before if past else None)


def _common(model: TransformerBridge, rows: Sequence[Sequence[int]], n_positions: int) -> int:
    window = getattr(model.original_model.config.get_text_config(), "sliding_window", None)
    if window is not None and window < max(map(len, rows)):
        return 0
    same = (len(set(tokens)) == 1 for tokens in zip(*rows, strict=False))
    return min(sum(1 for _ in takewhile(bool, same)), min(map(len, rows)) - n_positions)


def shortcuts(model: TransformerBridge, rows: Sequence[Sequence[int]]) -> Shortcuts:
    """Which shortcuts reproduce this model's result, tried on two of the prompts; of a model on paper, all that there are.

    Architectures differ in what their blocks accept and store; a shortcut that does not reproduce the plain pass is not
    used. Nor is one that feeds tokens at other places than the plain pass, if a surrounding hook (`steering` with a
    token scope, or the user's own) may depend on the place.

    Args:
        model: A `TransformerBridge`.
        rows: Token ids of the prompts.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.model.chat import tokenize
        >>> model = load_model("demo", device="cpu")
        >>> shortcuts(model, tokenize(model, ["hi", "hello there"]))
        Shortcuts(resume=True, last_token=True, prefix=True)
    """
    if is_on_paper(model):  # nothing can be tried: the plan of a model for which all hold
        return Shortcuts()
    probe = sorted(rows, key=len)[:: max(1, len(rows) - 1)][:2]
    shared = _common(model, probe, 1)
    found = probed(
        model, f"shortcuts, {'with' if shared else 'without'} a prefix", lambda: _tried(model, probe, shared)
    )
    return found if same_for_all_tokens(model) else replace(found, last_token=False, prefix=False)


def _tried(model: TransformerBridge, probe: Sequence[Sequence[int]], shared: int) -> Shortcuts:
    last: tuple[int, Site] = (int(model.cfg.n_layers) - 1, "hook_resid_post")
    expected = forward(model, next(batches(model, probe, len(probe))), [last], logits=True)
    for allowed in (Shortcuts(), Shortcuts(prefix=False), Shortcuts(prefix=False, last_token=False), NONE):
        try:
            found = _with_shortcuts(model, probe, shared if allowed.prefix else 0, allowed)
        except UNFIT as error:
            if allowed == NONE or out_of_memory(error):
                raise
            continue
        if _agree(found, expected, last):
            break
    return allowed


def _with_shortcuts(
    model: TransformerBridge, rows: Sequence[Sequence[int]], n_prefix: int, allowed: Shortcuts
) -> Reached:
    """A pass after a prefix that resumes at half the depth and computes only the last token in the last block."""
    n_layers = int(model.cfg.n_layers)
    middle = n_layers // 2 if allowed.resume else 0
    enters: tuple[int, Site] = (middle, "hook_resid_pre")
    last: tuple[int, Site] = (n_layers - 1, "hook_resid_post")
    batch = next(batches(model, [row[n_prefix:] for row in rows], len(rows)))
    past: KeysValues = ()
    stream = below = None
    if n_prefix:
        prefix = next(batches(model, [rows[0][:n_prefix]], 1))
        lower = forward(model, prefix, [enters], n_positions=None, keep_keys_values=True)
        start = Resume(middle, lower.activations[enters])
        upper = forward(model, prefix, [last], resume=start, keep_keys_values=True)
        below = lower.keys_values
        past = (below or ()) + (upper.keys_values or ())
    if middle:
        stream = forward(model, batch, [enters], n_positions=None, resume=Resume(past=below)).activations[enters]
    return forward(
        model,
        batch,
        [last],
        n_positions=1,
        logits=True,
        hooks=(),
        resume=Resume(middle, stream, past),
        last_token_only=allowed.last_token,
    )


def _agree(found: Reached, expected: Reached, key: tuple[int, Site]) -> bool:
    assert found.logits is not None
    assert expected.logits is not None
    return alike(found.activations[key], expected.activations[key]) and alike(
        found.logits, expected.logits, expected.activations[key].dtype
    )


def alike(found: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether two ways to compute the same thing agree, to the rounding of the dtype that they were computed in.

    Args:
        found: From the one.
        expected: From the other.
        dtype: Default that of `expected`.

    Example:
        >>> alike(torch.tensor([1.00001]), torch.ones(1)), alike(torch.tensor([1.01]), torch.ones(1))
        (True, False)
    """
    tolerance = 1e-4 if (dtype or expected.dtype) in (torch.float32, torch.float64) else 5e-2
    return bool((found.float() - expected.float()).norm() <= tolerance * expected.float().norm())


def out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out, on a GPU or a CPU.

    Example:
        >>> out_of_memory(torch.OutOfMemoryError()), out_of_memory(ValueError())
        (True, False)
    """
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
