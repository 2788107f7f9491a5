"""A run's main numbers."""

from typing import Any

from cosmic_tl.data.contrast_set import SIDES
from cosmic_tl.experiments.causal_result import CausalMap
from cosmic_tl.experiments.effects import Effects
from cosmic_tl.experiments.placebos import Calibration
from cosmic_tl.selection.result import Selection
from cosmic_tl.selection.scores import parts


def summarize(
    identity: dict[str, Any],
    selection: Selection,
    effects: Effects,
    calibrations: list[Calibration],
    causal: CausalMap | None,
    notes: list[str],
    seconds: float,
) -> dict[str, Any]:
    """What `summary.json` holds.

    Args:
        identity: As in `settings.json`.
        selection: The choice.
        effects: What its edits and the placebos did.
        calibrations: Strengths of the placebos.
        causal: Where the direction acts, if it was measured.
        notes: Of prompts, templates and completions; the selection has its own.
        seconds: How long the run took.

    Example:
        >>> callable(summarize)
        True
    """
    table = effects.table
    rates: dict[str, dict[str, float]] = {"positive": {}, "negative": {}}
    intervals: dict[str, dict[str, list[float]]] = {"positive": {}, "negative": {}}
    fluency: dict[str, dict[str, dict[str, float]]] = {"positive": {}, "negative": {}}
    measures = [name for name in ("cross_entropy", "garbled", "well_formed", "names_topic") if name in table]
    for _, row in table.iterrows():
        name = row.condition.replace(" ", "_")
        rates[row.side][name] = row.rate
        intervals[row.side][name] = [row.low, row.high]
        fluency[row.side][name] = {m: float(row[m]) for m in measures if row[m] == row[m]}
    winner = selection.winner
    shares = [name for name in selection.table if str(name).startswith("share_")]
    scores = [*(name for measure in selection.measures for name in parts(measure)), *shares]
    return {
        "model": identity["model"],
        "fingerprint": identity["fingerprint"],
        "prompts": identity["prompts"]["name"],
        "mode": selection.mode,
        "alpha": selection.alpha,
        "induction_layer": selection.edits.layer,
        "induction_tokens": selection.edits.tokens,
        "direction": {"layer": selection.direction.layer, "position": selection.direction.position},
        "method": selection.method,
        "scores": {name: float(winner[name]) for name in scores}
        | {f"clean_{name}": value for name, value in selection.clean.items()},
        "stability": None if selection.stability is None else selection.stability.summary(),
        "generators": None if (among := selection.generators) is None else among.summary(),
        "null": None if selection.null is None else selection.null.summary(),
        "causal": None if causal is None else causal.summary(),
        "evaluation_layers": list(selection.evaluation_layers),
        "filters": [
            {name: None if value != value else value for name, value in row.items()}
            for row in selection.filters.to_dict("records")
        ],
        "rates": rates,
        "intervals": intervals,
        "fluency": fluency,
        "n": {side: int(table[table.side == side].n.max()) for side in SIDES},
        "paired": effects.paired_table().to_dict("records"),
        "placebos": [one.as_row() for one in calibrations],
        "shuffled_cosines": {
            str(seed): float(one.unit @ selection.direction.unit)
            for seed, one in selection.candidates.shuffled_directions(selection.direction).items()
        },
        "phrases": identity["settings"]["phrases"],
        "generation": dict(effects.generation),
        "warnings": list(selection.warnings),
        "notes": [*selection.notes, *notes],
        "seconds": round(seconds, 1),
    }
