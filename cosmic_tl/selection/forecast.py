"""Seconds and memory that a planned selection takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl._util.displays import number
from cosmic_tl.engine.passes import Layout, layout
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.model.batching import batches
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.offload import is_offloaded
from cosmic_tl.model.shortcuts import shared_prefix
from cosmic_tl.model.weightless import is_on_paper
from cosmic_tl.selection.options import CosmicOptions
from cosmic_tl.selection.pass_costs import BlockCost, block_costs, padded_macs
from cosmic_tl.selection.pass_timing import PassTiming, time_passes
from cosmic_tl.selection.peak_memory import MemoryUse, ModelShape, SideShape, memory_use

Row = dict[str, str | int | bool]


@checked
@dataclass(frozen=True, eq=False)
class Forecast:
    """What a selection takes: passes, multiply-adds as they are computed, seconds on this machine, memory at the peak."""

    stages: pd.DataFrame
    """One row per stage, with the columns stage, passes, macs (padding included), logits (rows whose logits are read) and
    shared (whether workers share it; the rest is done by one process)."""
    memory: MemoryUse
    timing: PassTiming | None = None
    """From a probe of this machine; None without one."""

    @property
    def seconds(self) -> float | None:
        """Predicted seconds of a whole selection, loading the model not included; None without a probe.

        With the divergence of one candidate. How many are needed until one passes the filter is not known before, nor which
        passes `Selection.stability` adds.

        Example:
            >>> columns = {"stage": ["scores"], "passes": [10], "macs": [100], "logits": [0], "shared": [True]}
            >>> timing = PassTiming(per_mac=0.01, per_pass=0.1, per_logits=0.0, probed=())
            >>> Forecast(pd.DataFrame(columns), MemoryUse(*[0] * 9), timing).seconds
            2.0
        """
        return None if self.timing is None else sum(self.by_stage.values())

    @property
    def by_stage(self) -> Mapping[str, float]:
        """Predicted seconds of each stage; empty without a probe.

        Example:
            >>> columns = {"stage": ["scores"], "passes": [10], "macs": [100], "logits": [0], "shared": [True]}
            >>> timing = PassTiming(per_mac=0.01, per_pass=0.1, per_logits=0.0, probed=())
            >>> Forecast(pd.DataFrame(columns), MemoryUse(*[0] * 9), timing).by_stage
            {'scores': 2.0}
        """
        if (timing := self.timing) is None:
            return {}
        return {
            str(one.stage): timing.seconds(float(one.macs), float(one.passes), float(one.logits))
            for one in self.stages.itertuples()
        }

    def with_workers(self, n: int, start: float = 0.0) -> float | None:
        """Predicted seconds with several workers, if each computes as fast as this process did in the probe.

        Workers on one machine share its cores, so that this holds for workers that have as many threads of their own. What
        workers share is divided by their number; clean passes, which each makes for its candidates, and divergences, of which
        the next depends on the last, are not.

        Args:
            n: Workers.
            start: Seconds until a worker is ready: its start, and loading the model. Default 0.

        Returns:
            Seconds; None without a probe.

        Raises:
            CosmicError: If `n` is not positive.

        Example:
            >>> columns = {"stage": ["scores", "clean"], "passes": [10, 1], "macs": [0, 0], "logits": [0, 0]}
            >>> stages = pd.DataFrame({**columns, "shared": [True, False]})
            >>> timing = PassTiming(per_mac=0.0, per_pass=1.0, per_logits=0.0, probed=())
            >>> Forecast(stages, MemoryUse(*[0] * 9), timing).with_workers(2, start=3.0)
            9.0
        """
        check_count("workers", n)
        if self.timing is None:
            return None
        took = self.by_stage
        shared = {str(one.stage) for one in self.stages.itertuples() if one.shared}
        return start + sum(seconds / (n if stage in shared else 1) for stage, seconds in took.items())

    def lines(self) -> list[str]:
        """What people are told.

        Example:
            >>> stages = pd.DataFrame(columns=["stage", "passes", "macs", "logits", "shared"])
            >>> Forecast(stages, MemoryUse(2_000_000_000, *[0] * 8)).lines()[0]
            '  peak memory 2.00 GB (weights 2.00), and 0.5 to 1 GB for Python and its libraries'
        """
        memory = self.memory
        most = sorted(((size, name) for name, size in memory.parts.items() if name != "weights"), reverse=True)[:3]
        some = [f"weights {memory.weights / 1e9:.2f}"]
        some += [f"{name.replace('_', ' ')} {size / 1e9:.2f}" for size, name in most if size >= 5e6]
        found = [
            f"  peak memory {memory.total / 1e9:.2f} GB ({', '.join(some)}), and 0.5 to 1 GB for Python and its libraries"
        ]
        if self.timing is not None:
            parts = ", ".join(f"{stage} {number(took)}" for stage, took in self.by_stage.items())
            rate = 1e-9 / self.timing.per_mac
            found.append(
                f"  about {number(self.seconds or 0.0)} s on this machine ({parts}): {number(rate)} GMACs per second and "
                f"{number(1000 * self.timing.per_pass)} ms per pass, by {len(self.timing.probed)} passes of this model"
            )
        return found


def forecast_of(
    model: TransformerBridge,
    rows: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
    train: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]] | None,
    cells: pd.DataFrame,
    n_positions: int,
    layers: Sequence[int],
    options: CosmicOptions,
    *,
    batch_size: int | None = None,
    probe: bool = False,
) -> Forecast:
    """What the passes of a plan take.

    Args:
        model: A `TransformerBridge`.
        rows: Token ids of the positive and negative validation prompts.
        train: The same of the training prompts; None if means are given.
        cells: Of the plan.
        n_positions: Candidates per layer.
        layers: The evaluation layers.
        options: Settings of the selection.
        batch_size: Rows per pass. Default: by available memory.
        probe: Whether to time passes of this model.

    Raises:
        CosmicError: If a probe is asked for of a model on paper, or of one with offloaded blocks.

    Example:
        >>> from cosmic_tl import load_model, load_prompts, plan_selection
        >>> plan = plan_selection(load_model("demo", device="cpu"), load_prompts("demo"))
        >>> plan.forecast.stages.stage.tolist()
        ['means', 'clean passes', 's_comply', 's_refuse', 'kl of one']
    """
    blocks, last = block_costs(model), max(layers)
    made = cells[cells.status == "pass"]
    whole = [layout(model, side, 1, 1, batch_size) for side in rows]
    stages = [] if train is None else [_means(_training(model, train, n_positions, batch_size), blocks)]
    stages.append(_clean(made, blocks, whole))
    shapes, busiest = [], whole[0]
    for measure, side in (("s_comply", 0), ("s_refuse", 1), ("kl", 1)):
        some = made[made.measure == measure]
        groups = some.groupby("source").size()
        shared = layout(model, rows[side], int(groups.max()) if len(groups) else 1, 1, batch_size)
        shapes.append(_shape(shared, None if measure == "kl" else last + 1))
        if measure != "kl" or len(some):
            stages.append(_edited(measure, some, groups, blocks, shared))
        if measure == "s_comply":
            busiest = shared
    lazy = cells[(cells.measure == "kl") & (cells.status == "lazy")]
    if len(lazy):
        one = lazy.loc[[lazy.macs.idxmax()]]
        alone = _edited("kl", one, one.groupby("source").size(), blocks, whole[1])
        stages.append(alone | {"stage": "kl of one", "shared": False})
    memory = memory_use(
        ModelShape.of(model),
        shapes,
        n_positions=n_positions,
        n_layers_read=len(layers),
        n_features=len(layers) if options.target == "concatenated" else 1,
        resampled=bool(options.n_resamples) and options.cell is None and not options.successive_halving,
        train=None if train is None else _training(model, train, n_positions, batch_size),
    )
    if probe and is_on_paper(model):
        raise CosmicError("probe: a model without weights makes no passes; plan it with probe=False (--no-probe)")
    if probe and is_offloaded(model):
        raise CosmicError(
            "probe: blocks of this model are read from memory or disk for every group of candidates, which single passes do not "
            "tell; plan it with probe=False (--no-probe)"
        )
    timing = time_passes(model, rows[0], busiest, last, blocks) if probe else None
    return Forecast(pd.DataFrame(stages), memory, timing)


def _shape(shared: Layout, depth: int | None = None) -> SideShape:
    sizes = tuple((int(batch.ids.shape[0]), int(batch.ids.shape[1])) for batch in shared.batches)
    return SideShape(shared.n_prefix, shared.together, sizes, depth)


def _training(
    model: TransformerBridge,
    train: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
    n_positions: int,
    batch_size: int | None,
) -> SideShape:
    """The training prompts of both sides in their batches."""
    prefixes = [shared_prefix(model, side, n_positions) for side in train]
    some = [
        (int(batch.ids.shape[0]), int(batch.ids.shape[1]))
        for side, prefix in zip(train, prefixes, strict=True)
        for batch in batches(model, [row[prefix:] for row in side], batch_size)
    ]
    return SideShape(max(prefixes), 1, tuple(some))


def _means(train: SideShape, blocks: Sequence[BlockCost]) -> Row:
    # All tokens go through the last block too.
    whole = [*blocks, blocks[-1]]
    work = sum(padded_macs(whole, n, width, train.prefix, 0, len(blocks)) for n, width in train.batches)
    return {"stage": "means", "passes": len(train.batches), "macs": work, "logits": 0, "shared": True}


def _clean(made: pd.DataFrame, blocks: Sequence[BlockCost], whole: Sequence[Layout]) -> Row:
    """Whole passes of both sides with their logits, and the stream that moves up from source layer to source layer."""
    work = passes = prompts = 0
    for side, measures in enumerate((["s_comply"], ["s_refuse", "kl"])):
        sources = [sorted(made[made.measure == one].source.unique()) for one in measures]
        for n, width in _shape(whole[side]).batches:
            work += padded_macs(blocks, n, width, whole[side].n_prefix, 0, len(blocks) - 1)
            passes, prompts = passes + 1, prompts + n
            for some in filter(None, sources):
                work += padded_macs(blocks, n, width, whole[side].n_prefix, 0, int(some[-1]))
                passes += len(some)
    return {"stage": "clean passes", "passes": passes, "macs": work, "logits": prompts, "shared": False}


def _edited(
    measure: str, cells: pd.DataFrame, groups: "pd.Series[int]", blocks: Sequence[BlockCost], shared: Layout
) -> Row:
    """Passes with edits: source layer by source layer, and in each as many edits at a time as a pass takes."""
    work = passes = logits = 0
    sizes = _shape(shared).batches
    last = dict(zip(cells.source, cells["last"], strict=True))
    for source, n_edits in groups.items():
        until = int(last[source])
        for n, width in sizes:
            work += n_edits * padded_macs(blocks, n, width, shared.n_prefix, int(str(source)), until)
            logits += n_edits * n * (measure == "kl")
        if shared.n_prefix:
            work += n_edits * padded_macs(blocks, 1, shared.n_prefix, 0, int(str(source)), until)
        passes += -(-n_edits // shared.together) * (len(sizes) + bool(shared.n_prefix))
    return {"stage": measure, "passes": passes, "macs": int(work), "logits": int(logits), "shared": True}
