"""COSMIC's score table, with its filters (Siu et al. 2025, section 3)."""

from collections.abc import Container, Iterable, Mapping
from math import nan

import pandas as pd

from cosmic_tl.selection.filters import Filter, apply_filters, common_filters, score_table
from cosmic_tl.selection.options import Cell, CosmicOptions
from cosmic_tl.selection.plan import COSMIC_MEASURES
from cosmic_tl.selection.scores import ScoreKey


def _position_rule(table: pd.DataFrame) -> tuple["pd.Series[bool]", "pd.Series[bool]"]:
    """The position −1 rule: later than both medians, over the other positions, of the best layer by each score.

    Returns:
        Which candidates it drops, and for which that is not decided. Scores that are not known are of late layers, and
        would only move a median up: what the known ones keep is kept.
    """
    others = table[table.position != -1]
    no = pd.Series(False, index=table.index)
    if others.empty:
        return no, no
    late = table.position == -1
    for score in ("s_comply", "s_refuse"):
        valid = others[others[score].notna()]
        peaks = valid.loc[valid.groupby("position")[score].idxmax(), "layer"]
        late &= table.layer > (peaks.sort_values().iloc[(len(peaks) - 1) // 2] if len(peaks) else -1)
    return (no, late) if others.not_needed.str.contains("s_").any() else (late, no)


def cosmic_table(
    scores: Mapping[ScoreKey, float],
    cells: Iterable[Cell],
    clean: float,
    n_layers: int,
    options: CosmicOptions,
    finalists: Container[Cell] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The score table with its filters applied as far as scores are known.

    Args:
        scores: By layer, position and measure.
        cells: The candidates.
        clean: Cosine between the classes with no intervention.
        n_layers: Layers of the model.
        options: Thresholds.
        finalists: What successive halving has left; None without it.

    Returns:
        The table, and what each filter took.

    Example:
        >>> scores = {(0, -1, name): 0.0 for name in ("s_comply", "s_refuse", "kl", "kl_median", "kl_max", "kl_max_prompt")}
        >>> cosmic_table(scores, [(0, -1)], 0.2, 8, CosmicOptions())[1]["filter"].tolist()
        ['undefined', 'late layer', 'KL', 'position -1 rule']
    """
    table = score_table(scores, cells, COSMIC_MEASURES)
    table.insert(table.columns.get_loc("kl"), "score", table.s_comply + table.s_refuse)
    for name in ("comply", "refuse"):
        table[f"share_{name}"] = (table[f"s_{name}"] - clean) / (1 - clean) if clean < 1 else nan
    filters = common_filters(table, COSMIC_MEASURES, n_layers, options.max_layer_share, options.max_kl)
    if finalists is not None:
        out = [cell not in finalists for cell in zip(table.layer, table.position, strict=True)]
        option = "successive_halving=False (without --successive-halving)"
        filters.append(Filter("successive halving", pd.Series(out, index=table.index), option))
    if options.last_position_rule and (options.cell is None or options.full_table):  # which looks at other candidates
        rule = "last_position_rule=False (--no-last-position-rule)"
        dropped, open_ = _position_rule(table)
        filters.append(Filter("position -1 rule", dropped, rule))
        table.loc[open_, "not_needed"] = [
            f"{other}, position -1 rule".removeprefix(", ") for other in table.not_needed[open_]
        ]
    return apply_filters(table, filters)
