"""Which passes a COSMIC selection takes, which it spares and why, and what each costs: known before any is made."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl._util.displays import number
from cosmic_tl._util.results import Result
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.shortcuts import shared_prefix, shortcuts
from cosmic_tl.selection.equal_kl import STEPS
from cosmic_tl.selection.forecast import Forecast
from cosmic_tl.selection.options import Cell, CosmicOptions
from cosmic_tl.selection.pass_costs import Tokens, block_costs, macs

COSMIC_MEASURES = ("s_comply", "s_refuse", "kl")


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Plan(Result):
    """The passes of a selection."""

    cells: pd.DataFrame
    """One row per measure of a candidate, with the columns layer, position, measure, status, reason, source, last and macs. A
    status is "pass"; "known" without a pass; "lazy", made if the choice comes to depend on it; or "skipped", since nothing
    reads it."""
    clean_macs: int
    """Of the unedited model on all validation prompts."""
    released_macs: int
    """What the papers' released programs spend: three full passes per candidate, with the logits of every position."""
    evaluation_layers: tuple[int, ...]
    n_prompts: tuple[int, int]
    n_prefix: int
    """Tokens that all prompts of a side begin with."""
    n_generators: int = 1
    """Ways to make the candidates, each of which takes all of these passes."""
    forecast: Forecast | None = None
    """Memory, and seconds if a probe was made; None in a selection's own plan."""

    def of(self, measure: str, *statuses: str) -> list[Cell]:
        """Candidates whose measure has one of some statuses.

        Example:
            >>> cells = pd.DataFrame({"layer": [1], "position": [-1], "measure": ["kl"], "status": ["lazy"]})
            >>> Plan(cells, 0, 0, (3,), (4, 4), 0).of("kl", "lazy")
            [(1, -1)]
        """
        some = self.cells[(self.cells.measure == measure) & self.cells.status.isin(statuses)]
        return list(zip(some.layer.tolist(), some.position.tolist(), strict=True))

    @property
    def macs(self) -> int:
        """Multiply-adds of what is certain to be done, one candidate's KL included.

        Example:
            >>> columns = {"measure": ["s_comply", "kl"], "status": ["pass", "lazy"], "macs": [10, 5]}
            >>> Plan(pd.DataFrame(columns), 2, 170, (3,), (4, 4), 0).macs
            17
        """
        lazy = self.cells[(self.cells.measure == "kl") & (self.cells.status == "lazy")]
        made = int(self.cells[self.cells.status == "pass"].macs.sum())
        return self.clean_macs + made + (int(lazy.macs.max()) if len(lazy) else 0)

    def null_macs(self, n: int) -> float:
        """Multiply-adds of `measure_null` beside such a selection, at most: most searches for equal KL end early.

        Args:
            n: Null directions of each kind.

        Example:
            >>> rows = {"measure": ["s_comply", "s_refuse", "kl"], "status": ["pass", "pass", "lazy"], "macs": [10, 10, 20]}
            >>> Plan(pd.DataFrame(rows), 2, 170, (3,), (4, 4), 0).null_macs(n=1)
            171.0
        """
        # On half of the prompts, at the mean cost of a candidate.
        comply, refuse, kl = (self.cells[self.cells.measure == name].macs.mean() / 2 for name in COSMIC_MEASURES)
        return float(self.macs / 2 + (1 + 2 * n) * (comply + refuse) + n * STEPS * kl)

    @property
    def table(self) -> pd.DataFrame:
        """One row per measure, status and reason: candidates and GMACs.

        Example:
            >>> columns = {"measure": ["kl"], "status": ["lazy"], "reason": ["filter"], "macs": [2_000_000_000]}
            >>> Plan(pd.DataFrame(columns), 2, 170, (3,), (4, 4), 0).table.gmacs.tolist()
            [2.0]
        """
        groups = self.cells.groupby(["measure", "status", "reason"], sort=False)
        table = groups.macs.agg(candidates="size", gmacs="sum").reset_index()
        return table.assign(gmacs=table.gmacs / 1e9)

    def _lines(self) -> list[str]:
        head = (
            f"Plan: {self.n_prompts[0]} + {self.n_prompts[1]} validation prompts, {self.n_prefix} tokens shared; "
            f"evaluation layers {', '.join(map(str, self.evaluation_layers))}"
        )
        spared = (
            f"  {number(self.macs / 1e9)} GMACs with the clean passes and one candidate's KL; the released procedure takes "
            f"{number(self.released_macs / 1e9)} ({self.released_macs / max(self.macs, 1):.1f} times as many)"
        )
        times = f"  for each of {self.n_generators} generators" if self.n_generators > 1 else ""
        told = [] if self.forecast is None else self.forecast.lines()
        return [head, spared, *([times] if times else []), *told]


def plan_cosmic(
    model: TransformerBridge,
    positive: Sequence[Sequence[int]],
    negative: Sequence[Sequence[int]],
    n_positions: int,
    layers: Sequence[int],
    options: CosmicOptions,
    undefined: Sequence[Cell] = (),
) -> Plan:
    """Decide which passes a selection takes.

    Args:
        model: A `TransformerBridge`.
        positive: Token ids of the positive validation prompts.
        negative: Token ids of the negative validation prompts.
        n_positions: Candidates per layer.
        layers: The evaluation layers.
        options: Settings of the selection.
        undefined: Candidates that have no direction.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.model.chat import tokenize
        >>> model = load_model("demo", device="cpu")
        >>> rows = tokenize(model, ["Bake a pie.", "Rob a bank clerk."])
        >>> plan = plan_cosmic(model, rows, rows, 5, (6,), CosmicOptions())
        >>> plan.of("s_comply", "known")
        [(7, -5), (7, -4), (7, -3), (7, -2), (7, -1)]
    """
    n_layers, blocks = int(model.cfg.n_layers), block_costs(model)
    unembedding = int(model.cfg.d_model) * int(model.cfg.d_vocab)
    sides = [Tokens.of(rows, shared_prefix(model, rows)) for rows in (positive, negative)]
    resumes = shortcuts(model, positive).resume
    highest = max(layers)
    gone, rows = set(undefined), []
    for layer in range(n_layers):
        for position in range(-n_positions, 0):
            for measure in COSMIC_MEASURES:
                everywhere = options.mode == "linear" and measure != "s_refuse"
                at = options.induction_layer if measure == "s_refuse" else None
                source = 0 if everywhere or not resumes else layer if at is None else at
                late = layer >= options.max_layer_share * n_layers
                last = n_layers - 1 if measure == "kl" else highest
                status, reason = "pass", "scores"
                if (layer, position) in gone:
                    status, reason = "known", "no direction"
                elif source > last:
                    status, reason = "known", "above the evaluation layers"
                elif options.cell is not None and not options.full_table:
                    asked = (layer, position) == options.cell
                    status, reason = ("pass", "asked for") if asked else ("skipped", "another candidate was asked for")
                elif late and not options.full_table:
                    ruled = measure != "kl" and options.last_position_rule and n_positions > 1 and position != -1
                    status = "lazy" if ruled else "skipped"
                    reason = "late layer: only for the position -1 rule" if ruled else "late layer"
                elif measure == "kl" and not options.full_table:
                    status, reason = "lazy", "only until one passes the filter"
                elif measure == "kl":
                    reason = "full table"
                tokens = sides[0 if measure == "s_comply" else 1]
                cost = 0 if status == "known" else macs(tokens, blocks, source, last, unembedding * (measure == "kl"))
                rows.append((layer, position, measure, status, reason, source, last, cost))
    columns = ["layer", "position", "measure", "status", "reason", "source", "last", "macs"]
    everything = [Tokens.of(rows_, 0) for rows_ in (positive, negative)]
    full_pass = [
        sum(side.own * block.weights + side.looked_at * block.scores for block in blocks) + side.own * unembedding
        for side in everything
    ]
    return Plan(
        pd.DataFrame(rows, columns=columns),
        sum(macs(side, blocks, 0, n_layers - 1, unembedding) for side in sides),
        n_layers * n_positions * (full_pass[0] + 2 * full_pass[1]),
        tuple(layers),
        (len(positive), len(negative)),
        min(side.prefix for side in sides),
    )
