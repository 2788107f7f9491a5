"""The score table, and the filters on it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import nan

import pandas as pd

from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.errors import CosmicError, NoCandidateError
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.fingerprint import check_origin
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import Positions, post_instruction_positions
from cosmic_tl.selection.options import Cell, CommonOptions, CosmicOptions
from cosmic_tl.selection.scores import KL, ScoreKey, is_known, parts


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


def apply_filters(table: pd.DataFrame, filters: list[Filter]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mark candidates as kept or not, and say what each filter took.

    Args:
        table: Scores, one row per candidate.
        filters: In the order in which reasons are named.

    Returns:
        The table with `kept` and `reason`, and a summary with one row per filter.

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


def positions_of(
    model: TransformerBridge, candidates: Candidates | None, options: CommonOptions, chat: ChatFormat | None = None
) -> Positions:
    """The positions that candidates stand for, or the names that stand in their place.

    Args:
        model: The model.
        candidates: Those that were given, if any.
        options: With `n_positions`.
        chat: Formatting. Defaults to the plain chat template.

    Raises:
        CosmicError: If the candidates are for a model of another size, or have other positions than the prompts.

    Example:
        >>> import torch
        >>> from cosmic_tl import CosmicOptions, load_model
        >>> model = load_model("demo", device="cpu")
        >>> some = Candidates.from_vectors({(3, -1): torch.ones(128)}, n_layers=8, names=["mine"])
        >>> positions_of(model, some, CosmicOptions()).labels
        ('mine',)
    """
    if candidates is None:
        return post_instruction_positions(model, chat, options.n_positions)
    n_layers, n_positions, width = candidates.vectors.shape
    if (n_layers, width) != (found := (int(model.cfg.n_layers), int(model.cfg.d_model))):
        raise CosmicError(
            f"candidates: they are for {n_layers} layers of width {width}, and the model has {found[0]} of width {found[1]}"
        )
    check_origin(model, candidates.fingerprint, candidates.model, "candidates")
    if not candidates.names:
        return post_instruction_positions(model, chat, n_positions)
    if len(candidates.names) != n_positions:
        raise CosmicError(f"candidates: found {len(candidates.names)} names for {n_positions} columns; name each")
    return Positions(candidates.names)


def check_places(n_layers: int, n_positions: int, options: CommonOptions) -> None:
    """Make sure that the candidate and the layers that the settings name are there.

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
    layers = options.named_layers if isinstance(options, CosmicOptions) else None
    if wrong := [layer for layer in layers or () if not 0 <= layer < n_layers]:
        raise CosmicError(f"evaluation_layers: found {wrong[0]}, and the model has layers 0 to {n_layers - 1}")


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
