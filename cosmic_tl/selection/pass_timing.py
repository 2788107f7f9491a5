"""How long a model's own passes take on this machine: a probe of some seconds, from which plans predict the rest."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from cosmic_tl._util.border import checked
from cosmic_tl.directions.direction import Direction
from cosmic_tl.engine.passes import Clean, Layout, Reading, Rows, Steered
from cosmic_tl.interventions.edits import AffineEdit, Interventions
from cosmic_tl.metrics.divergence import kl_divergence
from cosmic_tl.model.forward import Resume, TokenBatch, forward
from cosmic_tl.model.hooks import Site
from cosmic_tl.model.load import TransformerBridge, has_float64
from cosmic_tl.model.shortcuts import shortcuts
from cosmic_tl.selection.pass_costs import BlockCost, padded_macs

BUDGET = 10.0
"""Seconds that a probe takes, roughly."""


@checked
@dataclass(frozen=True)
class PassTiming:
    """What passes of a model cost on a machine."""

    per_mac: float
    """Seconds per multiply-add in the blocks, attention, norms and edits included."""
    per_pass: float
    """Seconds that a pass takes whatever it computes."""
    per_logits: float
    """Seconds per row for logits and their divergence."""
    probed: tuple[tuple[int, int, float], ...]
    """Of every pass that was timed: first block, multiply-adds, seconds."""

    def seconds(self, macs: float, passes: float, logits: float = 0.0) -> float:
        """Predicted seconds.

        Args:
            macs: Multiply-adds in the blocks.
            passes: Number of passes.
            logits: Rows whose logits are read.

        Example:
            >>> PassTiming(1e-11, 0.5, 0.1, ()).seconds(macs=1e11, passes=2.0, logits=10.0)
            3.0
        """
        return macs * self.per_mac + passes * self.per_pass + logits * self.per_logits


def time_passes(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    shared: Layout,
    last: int,
    blocks: Sequence[BlockCost],
    budget: float = BUDGET,
    clock: Callable[[], float] = time.perf_counter,
) -> PassTiming:
    """Time passes with edits as the engine makes them, with the batch that it would use, from two or three source layers on.

    A pass from the last block on has next to no arithmetic; one that starts further below has as much as the budget allows.
    The line through them gives the rest. Whether a stream is this model's plays no part in how long a pass takes, so each
    starts from that of layer 0 and nothing has to be computed before.

    Args:
        model: A `TransformerBridge` with its weights.
        rows: Token ids of the prompts.
        shared: How prompts and edits share passes.
        last: The layer after which passes stop.
        blocks: From `block_costs`.
        budget: Seconds to spend, roughly: at least six passes are made.
        clock: What seconds are. Default wall time; `time.process_time` leaves out what other programs take of a busy machine.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.engine.passes import layout
        >>> from cosmic_tl.selection.pass_costs import block_costs
        >>> model = load_model("demo", device="cpu")
        >>> rows = [[5, 6, 7, 8], [5, 9, 7, 8]]
        >>> found = time_passes(model, rows, layout(model, rows, 5), 6, block_costs(model), budget=0.5)
        >>> found.per_mac > 0
        True
    """
    batch = sorted(shared.batches, key=lambda one: one.ids.numel())[len(shared.batches) // 2]
    clean = _start(model, rows, shared, last, batch)
    n, width = batch.ids.shape
    probed: list[tuple[int, int, float]] = []

    def probe(source: int) -> float:
        steered = _from(clean, source, shared.together)

        def run() -> None:
            steered.run(clean.batches[0])

        run()
        took = min(_seconds(run, model, clock) for _ in range(2))
        macs = padded_macs(blocks, shared.together * n, width, shared.n_prefix, source, last)
        probed.append((source, macs, took))
        return took

    started = clock()
    least = probe(last)
    if last:
        per_block = max(probe(last - 1) - least, 1e-9)
        left = budget - (clock() - started)
        # Three passes, and the prefix.
        deeper = min(last - 1, int(left / 3.5 / per_block))
        if deeper > 1:
            probe(last - deeper)
    per_mac, per_pass = _line([(float(macs), took) for _, macs, took in probed])
    return PassTiming(per_mac, per_pass, _logits(clean, model, batch, clock), tuple(probed))


def _start(
    model: TransformerBridge, rows: Sequence[Sequence[int]], shared: Layout, last: int, batch: TokenBatch
) -> Clean:
    """The clean model at layer 0 on one batch."""
    clean = Clean(model, rows, Reading((last,)), shortcuts(model, rows), shared)
    enters: tuple[int, Site] = (0, "hook_resid_pre")
    clean.batches = [Rows(batch, forward(model, batch, [enters], n_positions=None).activations[enters])]
    if clean.prefix is not None:
        tokens = clean.prefix.tokens
        found = forward(model, tokens, [enters], n_positions=None, keep_keys_values=True)
        clean.prefix = Rows(tokens, found.activations[enters])
        first: tuple[int, Site] = (0, "hook_resid_post")
        clean.past = forward(model, tokens, [first], keep_keys_values=True).keys_values or ()
    return clean


def _from(clean: Clean, source: int, together: int) -> Steered:
    """Some edits from a source layer on, which the stream of layer 0 enters."""
    first = clean.past[:1]
    clean.layer, clean.past = source, first * source
    try:
        model = clean.model
        direction = Direction(torch.ones(int(model.cfg.d_model)), torch.zeros(int(model.cfg.d_model)), source, -1)
        edits: list[Interventions] = [AffineEdit(direction, 0.0)] * together
        return Steered(clean, edits)
    finally:
        clean.past = first


def _logits(clean: Clean, model: TransformerBridge, batch: TokenBatch, clock: Callable[[], float]) -> float:
    """Seconds per row that logits and divergence add to a pass through the last block."""
    n_layers = int(model.cfg.n_layers)
    first = clean.past[:1]
    start = Resume(n_layers - 1, clean.batches[0].stream, first * n_layers)
    last: tuple[int, Site] = (n_layers - 1, "hook_resid_post")

    def whole() -> None:
        logits = forward(model, batch, logits=True, resume=start, last_token_only=True).logits
        assert logits is not None
        logits = logits if has_float64(logits.device) else logits.cpu()
        kl_divergence(logits, logits)

    def without() -> None:
        forward(model, batch, [last], resume=start, last_token_only=True)

    whole()
    without()
    return max(0.0, _seconds(whole, model, clock) - _seconds(without, model, clock)) / len(batch.rows)


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope and intercept of time on multiply-adds, neither negative."""
    n = len(points)
    x, y = sum(macs for macs, _ in points) / n, sum(took for _, took in points) / n
    spread = sum((macs - x) ** 2 for macs, _ in points)
    slope = sum((macs - x) * (took - y) for macs, took in points) / spread if spread else 0.0
    if slope <= 0 or (intercept := y - slope * x) < 0:
        return y / x, 0.0
    return slope, intercept


def _seconds(work: Callable[[], object], model: TransformerBridge, clock: Callable[[], float]) -> float:
    cuda = torch.device(str(model.cfg.device)).type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    started = clock()
    work()
    if cuda:
        torch.cuda.synchronize()
    return clock() - started
