"""The report of a run: the answer first, then figures, how the direction was chosen, completions, and how to repeat it."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from cosmic_tl.experiments.causal_result import CausalMap
from cosmic_tl.experiments.effects import Effects
from cosmic_tl.experiments.layer_similarity import LayerSimilarity
from cosmic_tl.figures.causal import plot_causal_map
from cosmic_tl.figures.effects import plot_refusal_rates
from cosmic_tl.figures.generators import plot_generators
from cosmic_tl.figures.null import plot_null
from cosmic_tl.figures.selection import (
    plot_direction_cosines,
    plot_layer_similarity,
    plot_repeatability,
    plot_scores,
    plot_similarity,
)
from cosmic_tl.figures.stability import plot_stability
from cosmic_tl.generation.sampling import generation_sentence
from cosmic_tl.metrics.rates import Rate
from cosmic_tl.report.completions import CONDITIONS, browser
from cosmic_tl.report.parts import flat_settings, in_percent, render, spread, strongest_places, table
from cosmic_tl.report.pictures import Picture
from cosmic_tl.selection.result import Selection
from cosmic_tl.selection.scores import parts


@dataclass(frozen=True)
class Cell:
    """What one condition did."""

    rate: Rate
    quality: str
    """The share of garbled answers, and their nats."""


@dataclass(frozen=True)
class Answer:
    """What the edit of one side's prompts did, beside baseline and a random direction."""

    verb: str
    name: str
    prompts: str
    """What the prompts are called."""
    cells: list[Cell]


def _answers(effects: Effects) -> list[Answer]:
    measured = effects.table.set_index(["side", "condition"])
    nats = dict(list(effects.by_seed().groupby(["side", "condition"]).cross_entropy))
    return [
        Answer(
            verb,
            names[1],
            effects.terms.sides[side],
            [Cell(effects.rate(side, name), _quality(measured.loc[(side, name)], nats[side, name])) for name in names],
        )
        for (side, names), verb in zip(CONDITIONS.items(), ("Removing", "Inducing"), strict=True)
    ]


def _quality(row: "pd.Series[Any]", nats: "pd.Series[float]") -> str:
    garbled = [f"{row.garbled:.0%} garbled"] if "garbled" in row and row.garbled == row.garbled else []
    return ", ".join([*garbled, spread(nats, "nats")])


def _candidates(selection: Selection) -> pd.DataFrame:
    best, d = selection.top(), selection.direction
    chosen = (best.layer == d.layer) & (best.position == d.position)
    names = {"s_comply": "S comply", "s_refuse": "S refuse"} | {name: name.replace("kl", "KL") for name in parts("kl")}
    outcome = [
        "chosen" if one else f"dropped by {why}" if why else "" for one, why in zip(chosen, best.reason, strict=True)
    ]
    return best.rename(columns=names).drop(columns=["kept", "reason"]).assign(outcome=outcome)


def _tests(effects: Effects) -> pd.DataFrame:
    tests, terms = effects.paired_table(), effects.terms
    return pd.DataFrame(
        {
            "prompts": tests.side.map(dict(terms.sides)),
            "condition": tests.condition,
            "against": tests.against,
            "n": tests.n,
            f"{terms.outcome} under the condition alone": tests.only_condition,
            "under the other alone": tests.only_against,
            "p": tests.p_value,
            "seeds": tests.seeds,
        }
    )


def write_report(
    selection: Selection,
    effects: Effects,
    similarity: LayerSimilarity,
    summary: dict[str, Any],
    settings: dict[str, Any],
    command: str = "",
    causal: CausalMap | None = None,
) -> str:
    """The page of a run (`report.html`) as text.

    Args:
        selection: The chosen direction and its score table.
        effects: Completions under every condition.
        similarity: Cosines before and after the edits.
        summary: As in `summary.json`.
        settings: As in `settings.json`.
        command: The command that repeats the run. Defaults to none.
        causal: Where the direction acts. Defaults to not measured.

    Example:
        >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, measure_effects, select_cosmic
        >>> from cosmic_tl.experiments.conditions import standard_conditions
        >>> from cosmic_tl.experiments.layer_similarity import layer_similarities
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
        >>> selection = select_cosmic(model, prompts, options)
        >>> asked = prompts.side("positive", "test", 2), prompts.side("negative", "test", 2)
        >>> conditions = standard_conditions(selection)
        >>> effects = measure_effects(model, asked, conditions=conditions, max_new_tokens=4)
        >>> similarity = layer_similarities(model, asked, selection)
        >>> summary = dict(model="demo", prompts="demo", seconds=1.0, notes=[], warnings=[])
        >>> write_report(selection, effects, similarity, summary, {}).startswith("<!doctype html>")
        True
    """
    cosines, among = selection.layer_similarity, selection.generators
    figures = {
        "rates": plot_refusal_rates(effects),
        "scores": plot_scores(selection, remarks=False),
        **({} if selection.stability is None else {"stability": plot_stability(selection.stability)}),
        **({} if among is None else {"generators": plot_generators(among)}),
        **({} if selection.null is None else {"null": plot_null(selection.null)}),
        "similarity": plot_similarity(similarity),
        "classes": plot_layer_similarity(selection),
        "directions": plot_direction_cosines(selection.candidates, selection.direction.position),
        **({} if causal is None else {"causal": plot_causal_map(causal)}),
    }
    repeatability = selection.candidates.repeatability
    if repeatability is not None:
        figures["repeatability"] = plot_repeatability(selection.candidates)
    return render(
        "report",
        title=f"cosmic_tl: {summary['model']}",
        heading=f"A concept direction in {summary['model']}",
        about=[f"Contrast set {summary['prompts']}", f"{summary['seconds']} s"],
        selection=selection,
        token=selection.positions.labels[selection.direction.position].replace("\n", "\\n"),
        terms=effects.terms,
        answer=_answers(effects),
        n={side: effects.rate(side, names[0]).n for side, names in CONDITIONS.items()},
        generation=generation_sentence(effects.generation) if effects.generation else "",
        phrases=summary.get("phrases") or (),
        summary=summary,
        pictures={name: Picture(figure) for name, figure in figures.items()},
        rates=effects.table.to_dict("records"),
        last={name: float(getattr(similarity, name)[-1, -1]) for name in ("before", "removal", "induction")},
        lowest={"layer": int(cosines.argmin()), "value": float(cosines.min())},
        repeatable=None
        if repeatability is None
        else float(repeatability[selection.direction.layer, selection.direction.position]),
        basis=selection.basis[:1].upper() + selection.basis[1:],
        among=among,
        generators=None if among is None else table(among.table, "What each generator chooses"),
        filters=table(selection.filters, "Filters"),
        candidates=table(_candidates(selection), "The ten best candidates"),
        conditions=table(in_percent(effects.terms.of(effects.table)), "The effect of each condition"),
        well_formed="well_formed" in effects.completions,
        tests=table(_tests(effects), "Paired tests"),
        causal=causal,
        strongest={} if causal is None else strongest_places(causal),
        settings=table(pd.DataFrame(flat_settings(settings), columns=["setting", "value"]), "Settings and versions"),
        command=command,
        version=settings.get("versions", {}).get("cosmic_tl", ""),
        **browser(effects),
    )
