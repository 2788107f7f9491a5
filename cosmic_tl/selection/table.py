"""The score table, the filters on it, and what they did."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from typing import TYPE_CHECKING, Literal

import pandas as pd
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl.chat import Positions
from cosmic_tl.directions.artifact import Direction
from cosmic_tl.directions.difference_in_means import Candidates
from cosmic_tl.display import as_html
from cosmic_tl.errors import CosmicError
from cosmic_tl.interventions import Intervention
from cosmic_tl.selection.modes import Edits
from cosmic_tl.selection.options import Cell, CommonOptions, InductionTokens, Mode
from cosmic_tl.selection.plan import Plan
from cosmic_tl.selection.scores import KL, ScoreKey, is_known, parts

if TYPE_CHECKING:
    from cosmic_tl.selection.refusal_tokens import RefusalTokens


class NoCandidateError(CosmicError):
    """Every candidate was filtered out.

    Example:
        >>> issubclass(NoCandidateError, CosmicError)
        True
    """


@dataclass(frozen=True, eq=False)
class Filter:
    """One reason to drop candidates."""

    name: str
    drops: "pd.Series[bool]"
    """Which rows of the table it takes."""
    option: str
    """The setting that admits them, in words."""
    values: "pd.Series[float] | None" = None
    """What it compares with `limit`, if it does."""
    limit: float = nan


@dataclass(frozen=True, eq=False)
class Selection:
    """A chosen direction, and everything the choice rests on."""

    direction: Direction
    table: pd.DataFrame
    """One row a candidate: position, layer, s_comply, s_refuse, score, kl (mean over prompts), kl_median, kl_max,
    kl_max_prompt (which of the negative validation prompts that were used, from 0), not_needed, share_comply, share_refuse,
    kept, reason. `not_needed` names what was not computed because the choice does not depend on it (all of it is with
    `full_table`); a candidate counts as kept as long as nothing that was computed drops it."""
    filters: pd.DataFrame
    """One row a filter: name, taken, taken_alone, best_score among the taken, nearest and farthest value from the limit among
    those that it alone took, option that admits them."""
    notes: tuple[str, ...]
    """Properties of the data and of the margin: close candidates, a prompt that decides alone, prompts that the unedited
    model does not treat as their side says."""
    warnings: tuple[str, ...]
    """Why the result must not be used."""
    evaluation_layers: tuple[int, ...]
    layer_similarity: Float64[Tensor, " layer"]
    """Cosine between the two classes' mean `y[l, -1]` on training prompts."""
    clean_similarity: float
    """Cosine between the classes on validation prompts with no intervention: the zero point of both scores."""
    positions: Positions
    candidates: Candidates
    mode: Mode
    plan: Plan | None
    """The passes that were made and spared (COSMIC)."""
    method: Literal["COSMIC", "refusal tokens"] = "COSMIC"
    tokens: "RefusalTokens | None" = None
    """The refusal tokens, where they were what the choice rests on."""
    clean: Mapping[str, float] = field(default_factory=dict)
    """Mean refusal scores with no intervention, "bypass" and "induce"."""
    alpha: float = 1.0
    """Strength of the induction that the candidates were scored by."""
    induction_layer: int | None = None
    """Where induction adds the direction; None is the direction's own layer."""
    induction_tokens: InductionTokens = "all"
    """Which tokens induction edits."""

    @property
    def edits(self) -> Edits:
        """How this selection removes and induces a direction, its own or a placebo.

        Example:
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
            >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
            >>> select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options).edits
            Edits(mode='affine', alpha=1.0, layer=None, tokens='all')
        """
        return Edits(self.mode, self.alpha, self.induction_layer, self.induction_tokens)

    def removal(self) -> Intervention:
        """The edit that takes the concept out, in the mode that the candidates were scored in.

        Example:
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
            >>> options = CosmicOptions(mode="linear", n_train=8, n_val=4, n_positions=1, max_kl=50.0)
            >>> selection = select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options)
            >>> type(selection.removal()).__name__
            'Ablation'
        """
        return self.edits.removal(self.direction)

    def induction(self, alpha: float | None = None) -> Intervention:
        """The edit that puts the concept in, in the mode that the candidates were scored in.

        Args:
            alpha: Strength. Defaults to the one that the candidates were scored by.

        Example:
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
            >>> options = CosmicOptions(alpha=0.5, n_train=8, n_val=4, n_positions=1, max_kl=10.0)
            >>> selection = select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options)
            >>> selection.induction().alpha, selection.induction(2.0).alpha
            (0.5, 2.0)
        """
        return self.edits.induction(self.direction, alpha)

    @property
    def measures(self) -> dict[str, str]:
        """Columns of the table that hold scores, and what they are called.

        Example:
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
            >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
            >>> list(select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options).measures)
            ['s_comply', 's_refuse', 'score', 'kl']
        """
        if self.method == "COSMIC":
            return {
                "s_comply": "S<sub>comply</sub>",
                "s_refuse": "S<sub>refuse</sub>",
                "score": "sum",
                "kl": "KL (nats)",
            }
        return {"bypass": "bypass (log-odds)", "induce": "induce (log-odds)", "kl": "KL (nats)"}

    @property
    def basis(self) -> str:
        """What the chosen candidate reaches, in a sentence.

        Example:
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
            >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
            >>> select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options).basis
            'S_comply ...'
        """
        row = self.winner
        if self.method == "COSMIC":
            return (
                f"S_comply {row.s_comply:.3f} ({row.share_comply:.0%} of the way to its target), S_refuse {row.s_refuse:.3f} "
                f"({row.share_refuse:.0%}), no intervention {self.clean_similarity:.3f}; KL {row.kl:.3g}"
            )
        return (
            f"refusal score of positive prompts {self.clean['bypass']:+.2f}, {row.bypass:+.2f} with the direction removed; of "
            f"negative ones {self.clean['induce']:+.2f}, {row.induce:+.2f} with it induced; KL {row.kl:.3g}; tokens {self.tokens}"
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """Warnings, then notes, each called what it is.

        Example:
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
            >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, evaluation_layers=(0,), max_kl=10.0)
            >>> select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options).remarks
            ('Warning: Removal with the chosen direction covers only ...', ...)
        """
        return (*(f"Warning: {one}" for one in self.warnings), *(f"Note: {one}" for one in self.notes))

    @property
    def winner(self) -> "pd.Series[float]":
        """The chosen row of the table.

        Example:
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
            >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
            >>> selection = select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options)
            >>> bool(selection.winner.kept), int(selection.winner.position)
            (True, -1)
        """
        d = self.direction
        return self.table[(self.table.layer == d.layer) & (self.table.position == d.position)].iloc[0]

    def top(self, n: int = 10) -> pd.DataFrame:
        """The `n` best candidates by score, filtered ones included.

        Example:
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
            >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
            >>> selection = select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options)
            >>> selection.top(3).score.is_monotonic_decreasing
            True
        """
        return self.table.sort_values("score", ascending=False).head(n).reset_index(drop=True)

    def __repr__(self) -> str:
        counted = {name: int(self.table[name].notna().sum()) for name in ("kl", "induce") if name in self.table}
        lines = [
            f"Selection({self.method}, {self.mode}): layer {self.direction.layer}, position {self.direction.position}"
            + ("" if self.edits == Edits(self.mode) else f"; induction with {self.edits.induced}"),
            f"  {self.basis}",
            f"  {int((~self.table.kept).sum())} of {len(self.table)} candidates dropped; "
            + ", ".join(f"{name} computed for {n}" for name, n in counted.items())
            + ("; evaluation layers " + ", ".join(map(str, self.evaluation_layers)) if self.evaluation_layers else ""),
        ]
        lines += [
            f"  {f['filter']} took {f.taken}"
            + (f" (best score {f.best_score:.3f})" if f.best_score == f.best_score else "")
            for _, f in self.filters[self.filters.taken > 0].iterrows()
        ]
        return "\n".join([*lines, *(f"  {remark}" for remark in self.remarks)])

    def _repr_html_(self) -> str:
        top = self.top()
        tokens = [repr(self.positions.labels[position]) for position in top.position]
        shown = top[["layer", "position", *self.measures, "kept", "reason"]]
        shown.insert(2, "token", tokens)
        return as_html(repr(self).splitlines(), shown.assign(kept=shown.kept.map({True: "✓", False: ""})))


def direction_and_edits(
    chosen: Selection | Direction, mode: Mode | None = None, alpha: float | None = None
) -> tuple[Direction, Edits]:
    """The direction that was chosen, and how it is removed and induced.

    Args:
        chosen: A selection, which knows its mode and strength, or a direction, which does not.
        mode: "linear" or "affine"; needed with a direction.
        alpha: Strength of the induction. Defaults to the selection's, or to 1 for a direction.

    Raises:
        CosmicError: If a direction comes without a mode, or a selection with another mode than its own.

    Example:
        >>> import torch
        >>> direction_and_edits(Direction(torch.ones(4), torch.zeros(4), 1, -1))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: mode: a direction does not know how it was chosen; pass the Selection, or ...
    """
    if isinstance(chosen, Selection):
        if mode not in (None, chosen.mode):
            raise CosmicError(
                f"mode: found {mode!r}, and the selection was made in {chosen.mode!r}; leave mode out, or pass "
                "selection.direction with the mode"
            )
        return chosen.direction, chosen.edits if alpha is None else replace(chosen.edits, alpha=alpha)
    if mode is None:
        raise CosmicError(
            "mode: a direction does not know how it was chosen; pass the Selection, or mode='linear' or mode='affine'"
        )
    return chosen, Edits(mode, 1.0 if alpha is None else alpha)


def apply_filters(table: pd.DataFrame, filters: list[Filter]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mark candidates as kept or not, and say what each filter took.

    Args:
        table: Scores, one row a candidate.
        filters: In the order in which reasons are named.

    Returns:
        The table with `kept` and `reason`, and a summary with a row a filter.

    Example:
        >>> scores = pd.DataFrame({"score": [2.0, 1.0]})
        >>> table, summary = apply_filters(scores, [Filter("KL", scores.score > 1.5, "max_kl")])
        >>> table.kept.tolist(), summary.taken.tolist(), summary.best_score.tolist()
        ([False, True], [1], [2.0])
    """
    drops = pd.DataFrame({f.name: f.drops.to_numpy() for f in filters}, index=table.index)
    reasons = drops.apply(lambda row: "; ".join(name for name, dropped in row.items() if dropped), axis=1)
    rows = []
    for f in filters:
        alone = drops[f.name] & (drops.sum(axis=1) == 1)
        near, far = nan, nan
        if f.values is not None and alone.any():
            missed = f.values[alone].iloc[(f.values[alone] - f.limit).abs().argsort()]
            near, far = missed.iloc[0], missed.iloc[-1]
        best = table.score[drops[f.name]].max()
        rows.append((f.name, int(drops[f.name].sum()), int(alone.sum()), best, near, far, f.option))
    columns = ["filter", "taken", "taken_alone", "best_score", "nearest", "farthest", "option"]
    summary = pd.DataFrame(rows, columns=columns)
    return table.assign(kept=~drops.any(axis=1), reason=reasons), summary


def score_table(scores: Mapping[ScoreKey, float], cells: Iterable[Cell], measures: Sequence[str]) -> pd.DataFrame:
    """The known measures of some candidates, one row each; `not_needed` names those that are not known.

    Example:
        >>> score_table({(3, -1, "bypass"): 0.5}, [(3, -1)], ["bypass", "induce"]).to_dict("records")
        [{'position': -1, 'layer': 3, 'bypass': 0.5, 'induce': nan, 'not_needed': 'induce'}]
    """
    rows = []
    for cell in cells:
        unknown = [measure for measure in measures if not is_known(scores, cell, measure)]
        found = [nan if m in unknown else scores[(*cell, name)] for m in measures for name in parts(m)]
        rows.append((cell[1], cell[0], *found, ", ".join(unknown)))
    columns = [name for measure in measures for name in parts(measure)]
    table = pd.DataFrame(rows, columns=["position", "layer", *columns, "not_needed"])
    if KL in measures:
        table = table.astype({"kl_max_prompt": "Int64"})
    return table.sort_values(["position", "layer"]).reset_index(drop=True)


def common_filters(
    table: pd.DataFrame, measures: Sequence[str], n_layers: int, max_layer_share: float, max_kl: float
) -> list[Filter]:
    """Those of both selections: no direction, too late a layer, too large a divergence.

    Example:
        >>> scores = {(3, -1, name): 1.0 for name in ("kl", "kl_median", "kl_max", "kl_max_prompt")}
        >>> table = score_table(scores, [(3, -1)], ["kl"])
        >>> [f.name for f in common_filters(table, ["kl"], 4, 0.8, 0.1) if f.drops.any()]
        ['KL']
    """
    undefined = pd.Series(False, index=table.index)
    for measure in measures:
        undefined |= table[measure].isna() & ~table.not_needed.str.contains(measure)
    late = table.layer >= max_layer_share * n_layers
    return [
        Filter("undefined", undefined, "none: there the classes do not differ, or are not finite"),
        Filter("late layer", late, "max_layer_share=1 (--max-layer-share 1)"),
        Filter("KL", table.kl > max_kl, "a higher max_kl (--max-kl)", table.kl, max_kl),
    ]


def settle(
    table_of: Callable[[], tuple[pd.DataFrame, pd.DataFrame]],
    compute: Callable[[str, Iterable[Cell]], None],
    lazy: Sequence[str],
    otherwise: Callable[[], None] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compute what the choice still depends on: lazy measures in descending order of score, until one candidate passes.

    Args:
        table_of: The table and its filters, as far as measures are known.
        compute: Makes a measure of some candidates known.
        lazy: Measures to compute this way, the first one first: a candidate that it takes needs no other.
        otherwise: Decides what else is open about the best candidate.

    Returns:
        The table and its filters.

    Example:
        >>> scores = {(0, -1, "score"): 2.0, (1, -1, "score"): 1.0}
        >>> def table_of():
        ...     table = score_table(scores, [(0, -1), (1, -1)], ["score", "induce"])
        ...     return apply_filters(table, [Filter("induce", table.induce <= 0, "min_induce")])
        >>> def compute(name, cells):
        ...     scores.update({(*cell, name): 1.0 for cell in cells})
        >>> settle(table_of, compute, ["induce"])[0].induce.tolist()
        [1.0, nan]
    """
    look_at = 1
    while True:
        table, filters = table_of()
        best = table[table.kept].sort_values("score", ascending=False, kind="stable")
        if best.empty or not (needed := best.not_needed.iloc[0]):
            return table, filters
        measure = next((measure for measure in lazy if measure in needed), None)
        if measure is not None:
            waiting = best[best.not_needed.str.contains(measure)].head(look_at)
            compute(measure, zip(waiting.layer, waiting.position, strict=True))
            look_at *= 2  # several share the clean passes
        elif otherwise is not None:
            otherwise()
        else:
            return table, filters


def check_places(n_layers: int, n_positions: int, options: CommonOptions) -> None:
    """Make sure that the candidate and the layer that the settings name are there.

    Raises:
        CosmicError: If the model has no such layer, or the prompts no such position.

    Example:
        >>> from cosmic_tl import CosmicOptions
        >>> check_places(8, 5, CosmicOptions(cell=(8, -1)))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: cell: found layer 8, position -1; layers are 0 to 7 and positions -5 to -1
    """
    if options.cell is not None and not (0 <= options.cell[0] < n_layers and -n_positions <= options.cell[1] < 0):
        raise CosmicError(
            f"cell: found layer {options.cell[0]}, position {options.cell[1]}; layers are 0 to {n_layers - 1} and positions "
            f"{-n_positions} to -1"
        )
    if options.induction_layer is not None and not 0 <= options.induction_layer < n_layers:
        raise CosmicError(f"induction_layer: found {options.induction_layer}; layers are 0 to {n_layers - 1}")


def choose(table: pd.DataFrame, filters: pd.DataFrame, cell: Cell | None = None) -> "pd.Series[float]":
    """The kept candidate with the highest score.

    Args:
        table: With `kept` and `score`.
        filters: From `apply_filters`.
        cell: Take this candidate instead, also where a filter drops it.

    Raises:
        NoCandidateError: If none is kept; the message says which filter took how many and what to relax.

    Example:
        >>> table = pd.DataFrame({"score": [1.0, 2.0], "kept": [True, True], "layer": [0, 1]})
        >>> int(choose(table, pd.DataFrame()).layer)
        1
    """
    if cell is not None:
        return table[(table.layer == cell[0]) & (table.position == cell[1])].iloc[0]
    kept = table[table.kept]
    if kept.empty:
        busy = filters[filters.taken > 0]
        took = "; ".join(_relaxed(row) for _, row in busy.iterrows())
        raise NoCandidateError(f"selection: all {len(table)} candidates were filtered out: {took}")
    return kept.loc[kept.score.idxmax()]


def _relaxed(row: "pd.Series[float]") -> str:
    """What a filter took, by how much that was missed, and how many candidates it alone stands in the way of."""
    alone = f"{row.taken_alone} of them alone"
    if row.nearest == row.nearest:
        alone += f", with values from {row.nearest:.3g} to {row.farthest:.3g}"
    return f"{row['filter']} took {row.taken} (best score {row.best_score:.3f}; {alone}; relax with {row.option})"
