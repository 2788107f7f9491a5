"""Pages of what other commands make of a finished run: sweeps, calibrations, causal maps, conversations, adversarial suffixes."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from cosmic_tl.experiments.causal_result import CausalMap
from cosmic_tl.experiments.conversation import Conversation
from cosmic_tl.experiments.cost_curves import CostCurves
from cosmic_tl.experiments.sweeps import BASELINE, Sweep
from cosmic_tl.figures.causal import plot_causal_map
from cosmic_tl.figures.conversation import plot_conversation
from cosmic_tl.figures.cost_curves import plot_cost_curves
from cosmic_tl.figures.suffixes import plot_head_attention, plot_head_contributions, plot_suffix_cosines
from cosmic_tl.figures.sweeps import plot_sweep
from cosmic_tl.generation.sampling import generation_sentence
from cosmic_tl.metrics.rates import Rate
from cosmic_tl.report.parts import in_percent, render, strongest_places, table
from cosmic_tl.report.pictures import Picture
from cosmic_tl.suffixes.analysis import SuffixAnalysis
from cosmic_tl.suffixes.groups import ADVERSARIAL, HARMFUL, RANDOM
from cosmic_tl.suffixes.suffix import Suffix

ENDED = {
    "complied": "it ended because the model complied with all of them",
    "steps": "it ended with the last step that was asked for",
    "interrupted": "it was interrupted, and the best suffix so far was kept",
}
"""How a search ended, by `Suffix.stopped`."""
NUMBERS = ["method", "alpha", "side", "n", "rate", "low", "high", "garbled", "cross_entropy", "score_mean"]
"""Columns of a sweep's table in its page."""


def _about(summary: Mapping[str, Any], run: str) -> list[str]:
    """What the pages of a run say below the heading."""
    d = summary["direction"]
    return [
        *([f"Run {run}"] if run else []),
        f"model {summary['model']}",
        f"contrast set {summary['prompts']}",
        f"direction of layer {d['layer']}, position {d['position']}",
    ]


def write_sweep(found: Sweep, summary: Mapping[str, Any], *, run: str = "", command: str = "") -> str:
    """The page of a sweep (`sweep.html`) as text.

    Args:
        found: From `sweep`.
        summary: The run's, as in `summary.json`.
        run: The run's directory. Defaults to none.
        command: The command that repeats the sweep. Defaults to none.

    Example:
        >>> import pandas as pd
        >>> row = {"method": "affine", "alpha": 1.0, "side": "positive", "prompt": "hi", "sample": 0, "verdict": "refusal"}
        >>> summary = {"model": "demo", "prompts": "demo", "direction": {"layer": 6, "position": -4}}
        >>> "<title>Refusal against" in write_sweep(Sweep(pd.DataFrame([row])), summary)
        True
    """
    rates, terms, picture = found.table, found.terms, Picture(plot_sweep(found))
    unedited = rates.method == BASELINE[0]
    n = found.completions.groupby("side").prompt.nunique()
    prompts = [f"{n[side]} {name}" for side, name in terms.sides.items() if side in n]
    n_samples = found.completions["sample"].nunique()
    each = f"{n_samples} completion{'s' * (n_samples != 1)} per prompt"
    return render(
        "sweep",
        title=picture.title,
        heading=picture.title,
        about=[*_about(summary, run), f"{' and '.join(prompts)} test prompts, {each}"],
        terms=terms,
        unedited=rates[unedited].to_dict("records"),
        steered=rates[~unedited].to_dict("records"),
        stretches=table(in_percent(terms.of(found.non_monotonic())), "Stretches that are not monotonic"),
        picture=picture,
        scored="score_mean" in rates,
        peaks=table(terms.of(_peaks(found)), "Where the scores of single prompts peak"),
        numbers=table(
            in_percent(terms.of(rates[[name for name in NUMBERS if name in rates]])),
            "Rates by method, side and strength",
        ),
        generation=generation_sentence(found.generation) if found.generation else "",
        command=command,
    )


def _peaks(found: Sweep) -> pd.DataFrame:
    """By method and side: the median prompt's peak, and the share of prompts that peak before the largest α."""
    some = found.peaks().groupby(["method", "side"], sort=False)
    rows = some.agg(median_peak=("peak_alpha", "median"), earlier=("last", lambda last: f"{1 - last.mean():.0%}"))
    return rows.reset_index()


def write_calibration(found: CostCurves, summary: Mapping[str, Any], *, run: str = "", command: str = "") -> str:
    """The page of strengths at equal cost (`calibration.html`) as text.

    Args:
        found: From `calibrate`.
        summary: The run's, as in `summary.json`.
        run: The run's directory. Defaults to none.
        command: The command that repeats the search. Defaults to none.

    Example:
        >>> import pandas as pd
        >>> points = pd.DataFrame({"edit": ["addition"] * 2, "alpha": [0.0, 1.0], "kl_p95": [0.0, 1.0]})
        >>> points = points.assign(kl_mean=[0.0, 0.5], score=[-2.0, 3.0], n_tokens=9)
        >>> summary = {"model": "demo", "prompts": "demo", "direction": {"layer": 6, "position": -4}}
        >>> "<title>Effect against cost" in write_calibration(CostCurves(points, "kl_p95", 1.0, 4), summary)
        True
    """
    picture = Picture(plot_cost_curves(found))
    return render(
        "calibration",
        title=picture.title,
        heading=picture.title,
        about=[*_about(summary, run), f"{found.n_prompts} negative test prompts"],
        found=found,
        picture=picture,
        points=found.points.to_dict("records"),
        targets=table(found.table, "Each edit at the target"),
        numbers=table(found.points, "Every strength that was tried"),
        command=command,
    )


CAPTIONS = {
    "score": "Change of the refusal score (log-odds that the answer begins with a refusal token) towards the other class.",
    "cosine": "Change of the cosine to the other class's mean, at the evaluation layers.",
    "kl": "Divergence of the next token's distribution from that of the clean model.",
}


def write_causal(found: CausalMap, summary: Mapping[str, Any], *, run: str = "", command: str = "") -> str:
    """The page of a causal map (`causal.html`) as text.

    Args:
        found: From `causal_map`.
        summary: The run's, as in `summary.json`.
        run: The run's directory. Defaults to none.
        command: The command that repeats the map. Defaults to none.
    """
    pictures = {measure: Picture(plot_causal_map(found, measure)) for measure in found.measures}
    n, m = found.n_prompts
    title = next(iter(pictures.values())).title
    return render(
        "causal",
        title=title,
        heading=title,
        about=[
            *_about(summary, run),
            f"{n} {found.terms.sides['positive']} and {m} {found.terms.sides['negative']} prompts",
        ],
        found=found,
        strongest=strongest_places(found),
        pictures=pictures,
        captions=CAPTIONS,
        rows=found.table.to_dict("records"),
        numbers=table(found.terms.of(found.table), "Every place"),
        command=command,
    )


def write_conversations(
    found: Sequence[Conversation], summary: Mapping[str, Any], *, run: str = "", command: str = ""
) -> str:
    """The page of some conversations (`conversation.html`) as text.

    Args:
        found: From `follow_conversation`, all of one direction and way to generate; at least one.
        summary: The run's, as in `summary.json`.
        run: The run's directory. Defaults to none.
        command: The command that repeats them. Defaults to none.
    """
    layer = found[0].layer
    caption = f"Mean projection over the tokens of prompt and completion, at layer {layer}"
    return render(
        "conversation",
        title="Conversations token by token",
        heading="Conversations token by token",
        about=_about(summary, run),
        layer=layer,
        marks=found[0].scale[1],
        found=[
            {
                "prompt": one.prompt,
                "text": Markup(one.html()),  # where everything is escaped
                "means": table(one.summary(), caption),
                "rows": one.summary().to_dict("records"),
                "picture": Picture(plot_conversation(one)),
            }
            for one in found
        ],
        generation=generation_sentence(found[0].generation),
        command=command,
    )


def write_suffix(
    found: Suffix, analysis: SuffixAnalysis, summary: Mapping[str, Any], *, run: str = "", command: str = ""
) -> str:
    """The page of an adversarial suffix (`suffix.html`) as text.

    Args:
        found: From `find_suffix`.
        analysis: From `analyse_suffix`.
        summary: The run's, as in `summary.json`.
        run: The run's directory. Defaults to none.
        command: The command that repeats search and analysis. Defaults to none.
    """
    rates = {row.group: Rate(row.rate, row.low, row.high, row.n) for row in analysis.rates.itertuples()}
    cosines, written, looks = analysis.cosines, analysis.contributions, analysis.attention
    on_suffix = looks[looks.region == "suffix"].groupby("group")["mean"].mean()
    return render(
        "suffix",
        title="Adversarial suffix",
        heading="An adversarial suffix and the direction",
        about=_about(summary, run),
        suffix=found,
        plain=rates[HARMFUL],
        random=rates[RANDOM],
        adversarial=rates[ADVERSARIAL],
        rates=rates,
        n_works=int(cosines[cosines.group == HARMFUL].n.iloc[0]),
        pictures={
            "cosines": Picture(plot_suffix_cosines(analysis)),
            "contributions": Picture(plot_head_contributions(analysis)),
            "attention": Picture(plot_head_attention(analysis)),
        },
        last=cosines[cosines.layer == cosines.layer.max()].set_index("group")["mean"].to_dict(),
        strongest=written[written.group == HARMFUL].nlargest(1, "mean").to_dict("records")[0],
        looks={"random": on_suffix[RANDOM], "adversarial": on_suffix[ADVERSARIAL]},
        ended=ENDED[found.stopped],
        completions=table(found.table, "Prompts that the suffix was made on"),
        command=command,
    )
