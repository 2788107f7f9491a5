"""Standardised α sweeps: refusal against the strength of steering, side by side for several ways to steer.

A method is standardised if its α means the same on every prompt: with ACE 0 reads as the negative class and 1 as the
positive one, on harmful and harmless prompts alike.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any, get_args

import pandas as pd
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import each, track
from cosmic_tl._util.results import Result
from cosmic_tl.data.contrast_set import SIDES, Prompts, Side, labels_of, sides_of
from cosmic_tl.directions.direction import Direction
from cosmic_tl.engine import Outcome, Reading, intervened
from cosmic_tl.errors import CosmicError, check_alphas, check_count
from cosmic_tl.experiments.conditions import REFUSAL, Row, Terms, terms_of
from cosmic_tl.experiments.known_rows import done_conditions
from cosmic_tl.experiments.sweep_methods import METHODS, Method
from cosmic_tl.generation.completions import complete
from cosmic_tl.generation.sampling import Sampling, describe_generation
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.judges.base import Judge
from cosmic_tl.judges.substring import SubstringJudge
from cosmic_tl.metrics.fluency import garbled_share, mark_garbled, measure_fluency
from cosmic_tl.metrics.rates import rate
from cosmic_tl.metrics.refusal_score import RefusalTokens, log_odds
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.load import TransformerBridge

Setting = tuple[str, float]
"""A method and an α."""
BASELINE: Setting = ("none", 0.0)
"""The model without intervention."""
DEFAULT_ALPHAS = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
STRETCH = ("method", "side", "peak_alpha", "from_alpha", "to_alpha", "lowest_alpha", "drop", "separated")


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Sweep(Result):
    """Completions and refusal scores for every method and α, and what they come to."""

    completions: pd.DataFrame
    """One row per completion: method, alpha, side, prompt, sample, completion, verdict, cross_entropy (nats per token, of the
    unsteered model; None for an empty completion), late_nats and repetition (as in `metrics.fluency`), garbled, and, if
    refusal tokens were given, score (the prompt's, so the same for all its samples). The model without intervention is
    `BASELINE`."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """How completions were generated: `describe_generation`, and the seed."""
    terms: Terms = REFUSAL
    """What people are shown."""

    @property
    def scores(self) -> pd.DataFrame:
        """One row per prompt and condition: method, alpha, side, prompt, score (the log-odds of refusal's first tokens).

        Example:
            >>> row = {"method": "affine", "alpha": 1.0, "side": "positive", "prompt": "hi", "sample": 0, "score": 2.5}
            >>> Sweep(pd.DataFrame([row, {**row, "sample": 1}])).scores.score.tolist()
            [2.5]
        """
        some = self.completions.reindex(columns=["method", "alpha", "side", "prompt", "sample", "score"])
        first = some[some["sample"] == 0].dropna(subset="score")
        return first.drop(columns="sample").reset_index(drop=True)

    @property
    def table(self) -> pd.DataFrame:
        """One row per method, side and α: refusal rate over all completions, and quartiles over prompts.

        `low` and `high` are the Wilson 95 % interval of the rate, as if completions were independent; `rate_q25` and
        `rate_q75` the quartiles of each prompt's own rate, which say something only with several completions per prompt.
        `garbled` is the share of garbled completions (`metrics.fluency`), `cross_entropy` the mean over completions.
        Scores (mean and quartiles over prompts) are there if refusal tokens were given.

        Example:
            >>> row = {"method": "affine", "alpha": 1.0, "side": "positive", "prompt": "hi", "sample": 0}
            >>> Sweep(pd.DataFrame([{**row, "verdict": "refusal"}])).table.rate.tolist()
            [1.0]
        """
        scores = dict(list(self.scores.groupby(["method", "side", "alpha"]).score))
        methods = list(dict.fromkeys(self.completions.method))
        rows: list[Row] = []
        for (method, side, alpha), some in self.completions.groupby(["method", "side", "alpha"]):
            refused = some.verdict == "refusal"
            found = rate(int(refused.sum()), len(some))
            own = refused.groupby(some.prompt).mean()
            row: Row = {
                "method": method,
                "alpha": alpha,
                "side": side,
                "n": found.n,
                "rate": found.value,
                "low": found.low,
                "high": found.high,
                "rate_q25": own.quantile(0.25),
                "rate_q75": own.quantile(0.75),
            }
            if "cross_entropy" in some:
                row["cross_entropy"] = some.cross_entropy.astype(float).mean()
            if "garbled" in some:
                row["garbled"] = garbled_share(some)
            if (score := scores.get((method, side, alpha))) is not None:
                row["score_mean"] = score.mean()
                row["score_q25"], row["score_q75"] = score.quantile(0.25), score.quantile(0.75)
            rows.append(row)
        # Within a method and side `groupby` has sorted by α, and a stable sort keeps that.
        rows.sort(key=lambda row: (methods.index(row["method"]), SIDES.index(row["side"])))
        return pd.DataFrame(rows)

    def peaks(self) -> pd.DataFrame:
        """The strength at which each prompt's refusal score is highest: prompts peak at different strengths, so that their mean
        can fall where most still rise.

        Returns:
            One row per method, side and prompt: method, side, prompt, peak_alpha, last (whether that is the largest α, so that
            the score may rise further), score. Empty without refusal scores.

        Example:
            >>> row = {"method": "affine", "side": "positive", "prompt": "hi", "sample": 0, "verdict": "refusal"}
            >>> rows = [{**row, "alpha": alpha, "score": score} for alpha, score in ((0.0, 1.0), (1.0, 3.0), (2.0, 2.0))]
            >>> Sweep(pd.DataFrame(rows)).peaks()[["peak_alpha", "last"]].values.tolist()
            [[1.0, False]]
        """
        steered = self.scores[self.scores.method != BASELINE[0]]
        best = steered.loc[steered.groupby(["method", "side", "prompt"], sort=False).score.idxmax()]
        largest = steered.groupby("method").alpha.max()
        found = best.rename(columns={"alpha": "peak_alpha"}).reset_index(drop=True)
        found["last"] = found.peak_alpha == found.method.map(largest)
        return found[["method", "side", "prompt", "peak_alpha", "last", "score"]]

    def non_monotonic(self, tolerance: float = 0.05) -> pd.DataFrame:
        """Where more steering refuses less: stretches of α whose refusal rate is below what a smaller α reached.

        Args:
            tolerance: By more than this. Default 0.05.

        Returns:
            One row per stretch: method, side, peak_alpha (the α that reached more), from_alpha and to_alpha (the first and
            last that fall short of it), lowest_alpha, drop (from the peak to the lowest), and separated (whether the
            Wilson intervals of the two do not overlap; if they do, the drop may be chance).

        Raises:
            CosmicError: If the tolerance is negative or not a number.

        Example:
            >>> row = {"method": "affine", "side": "positive", "prompt": "hi", "sample": 0}
            >>> verdicts = ["compliance", "refusal", "compliance"]
            >>> rows = [{**row, "alpha": float(i), "verdict": verdict} for i, verdict in enumerate(verdicts)]
            >>> Sweep(pd.DataFrame(rows)).non_monotonic()[["peak_alpha", "from_alpha", "to_alpha", "drop"]].values.tolist()
            [[1.0, 2.0, 2.0, 1.0]]
        """
        if not tolerance >= 0:
            raise CosmicError(f"tolerance: must be 0 or more, found {tolerance}; it is a difference of rates")
        rows: list[Row] = []
        for (method, side), some in self.table.groupby(["method", "side"], sort=False):
            some = some.reset_index(drop=True)
            reached = some.rate.cummax()
            # The margin keeps a drop of just the tolerance out, whatever its rounding.
            short = reached - some.rate > tolerance + 1e-9
            # While a rate falls short nothing new is reached, so a stretch has one peak.
            for _, stretch in some[short].groupby((~short).cumsum()[short]):
                before = some.loc[: stretch.index[0] - 1]
                peak = before[before.rate == reached[stretch.index[0]]].iloc[-1]
                lowest = stretch.loc[stretch.rate.idxmin()]
                drop = peak.rate - lowest.rate
                ends = stretch.alpha.iloc[0], stretch.alpha.iloc[-1]
                found = (method, side, peak.alpha, *ends, lowest.alpha, drop, bool(lowest.high < peak.low))
                rows.append(dict(zip(STRETCH, found, strict=True)))
        return pd.DataFrame(rows, columns=list(STRETCH))

    def _summary(self) -> str:
        steered = self.completions[self.completions.method != BASELINE[0]]
        n = self.completions.groupby("side", sort=False).prompt.nunique()
        sizes = [f"{n[side]} {self.terms.sides[side]}" for side in n.index]
        n_samples = self.completions["sample"].nunique()
        drops = self.non_monotonic()
        return (
            f"{', '.join(dict.fromkeys(steered.method))} at {steered.alpha.nunique()} α; {' + '.join(sizes)} prompts, "
            f"{n_samples} completion{'s' * (n_samples != 1)} each; {len(drops)} non-monotonic "
            f"stretch{'es' * (len(drops) != 1)}, {int(drops.separated.sum())} with separated intervals"
        )

    def _lines(self) -> list[str]:
        return [f"Sweep({self._summary()})"]


@checked
def sweep(
    model: TransformerBridge,
    prompts: Prompts,
    direction: Direction,
    *,
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    methods: Mapping[str, Method] = METHODS,
    n: int | None = None,
    tokens: RefusalTokens | None = None,
    chat: ChatFormat | None = None,
    n_samples: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int | None = None,
    known: Sequence[Row] = (),
    on_rows: Callable[[list[Row]], object] = lambda rows: None,
    judge: Judge | None = None,
    sampling: Sampling | None = None,
) -> Sweep:
    """Refusal rate, and refusal score, against α for several methods (Marshall et al. 2025).

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompts: A contrast set, whose test prompts are taken, or a pair of lists: positive and negative prompts.
        direction: With its reference.
        alphas: Strengths, in units of `r`. Default −1 … 2.
        methods: Name to a function of the direction and α that gives interventions. Default `METHODS`.
        n: The first prompts of each side, at most. Default all.
        tokens: From `find_refusal_tokens` or `refusal_tokens`: measures refusal scores too, which needs no completions and
            interventions on all tokens. Default None.
        chat: Formatting. Defaults to the plain chat template.
        n_samples: Completions per prompt. Default 1.
        max_new_tokens: Maximum number of new tokens. Default 64.
        temperature: 0 (default) is greedy.
        seed: For sampling; the sample number `k` uses `seed + k`, so every condition has the same random numbers.
        batch_size: Rows per forward pass. Default: by memory.
        known: Rows of conditions (method, α and side) that are already done, made with the same settings. Other
            methods and α among them are kept.
        on_rows: Called with the rows of each condition as it is done.
        judge: Says which completions are refusals, or show another concept. Default the phrases of `SubstringJudge`.
        sampling: Top-k, top-p and repetition penalty. Default none of them, whatever the checkpoint's defaults are.

    Raises:
        CosmicError: If α are missing, repeated or not finite, methods or prompts are missing, several samples are asked for
            without a temperature, or as `complete`.

    Example:
        >>> from cosmic_tl import AffineEdit, difference_in_means, load_model, load_prompts, mean_activations
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> means = [mean_activations(model, prompts.side(side, "train", 32)) for side in ("positive", "negative")]
        >>> direction = difference_in_means(*means).direction(4, -1, model)
        >>> asked = ["Rob a bank clerk."], ["Bake a pizza."]
        >>> found = sweep(model, asked, direction, alphas=(0.0, 1.0), methods={"affine": AffineEdit}, max_new_tokens=12)
        >>> found.table[["method", "alpha", "side", "rate"]].tail(4)
           method  alpha      side  rate
        2  affine    0.0  positive   0.0
        3  affine    1.0  positive   1.0
        4  affine    0.0  negative   0.0
        5  affine    1.0  negative   1.0
    """
    positive, negative = sides_of(prompts, "test", n)
    strengths = [float(alpha) for alpha in alphas]
    _check(strengths, methods, n_samples, temperature)
    generation = describe_generation(model, max_new_tokens, temperature, sampling)
    edits: dict[Setting, Interventions] = {BASELINE: ()}
    edits |= {(name, alpha): method(direction, alpha) for name, method in methods.items() for alpha in strengths}
    sides: dict[Side, Sequence[str]] = dict(zip(get_args(Side), (positive, negative), strict=True))
    rows = list(known)
    done = done_conditions(rows, sides, ("method", "alpha"), n_samples)
    for side, asked in sides.items():
        missing = {condition: edit for condition, edit in edits.items() if (side, *condition) not in done}
        # What is known is batched with the rest, so that a stopped sweep goes on with the very same numbers.
        known_too = {i for i, condition in enumerate(edits) if condition not in missing}
        scores = _scores(model, asked, edits, known_too, tokens, chat, batch_size) if tokens and missing else {}
        for (method, alpha), edit in each(missing.items(), f"edits, {side} prompts"):
            label = f"{side}, {method}, α = {alpha:g}"
            score = scores.get((method, alpha))
            new: list[Row] = []
            for sample in range(n_samples):
                texts = complete(
                    model,
                    asked,
                    edit,
                    chat=chat,
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    seed=seed + sample,
                    batch_size=batch_size,
                    label=label,
                    sampling=sampling,
                )
                verdicts = (judge or SubstringJudge())(asked, texts)
                fluency = measure_fluency(model, asked, texts, chat=chat, batch_size=batch_size).to_dict("records")
                for i, (prompt, text) in enumerate(zip(asked, texts, strict=True)):
                    row: dict[str, Any] = {
                        "method": method,
                        "alpha": alpha,
                        "side": side,
                        "prompt": prompt,
                        "sample": sample,
                        "completion": text,
                        "verdict": verdicts[i].verdict,
                        **{name: None if isnan(value) else value for name, value in fluency[i].items()},
                    }
                    new.append(row if score is None else {**row, "score": float(score[i])})
            on_rows(new)
            rows += new
    frame = pd.DataFrame(rows)
    frame["garbled"] = mark_garbled(model, frame, frame.method == BASELINE[0], chat=chat, batch_size=batch_size)
    terms = terms_of(judge.phrases if isinstance(judge, SubstringJudge) else None, labels_of(prompts))
    return Sweep(frame, {**generation, "seed": seed}, terms)


def _scores(
    model: TransformerBridge,
    prompts: Sequence[str],
    edits: Mapping[Setting, Interventions],
    known: Container[int],
    tokens: RefusalTokens,
    chat: ChatFormat | None,
    batch_size: int | None,
) -> dict[Setting, Float64[Tensor, " prompt"]]:
    """Each prompt's refusal score under every edit whose number is not known, in one run of the engine."""

    def score(outcome: Outcome) -> Tensor:
        assert outcome.logits is not None
        return log_odds(outcome.logits.cpu(), tokens.ids)

    conditions, found = list(edits), {}
    with track(len(edits), "refusal scores") as advance:
        rows = tokenize(model, prompts, chat)
        for i, values in intervened(
            model, rows, list(edits.values()), Reading(logits=True), score, batch_size=batch_size, known=known
        ):
            found[conditions[i]] = values
            advance(1)
    return found


def _check(alphas: Sequence[float], methods: Mapping[str, Method], n_samples: int, temperature: float) -> None:
    check_alphas(alphas)
    if not methods:
        raise CosmicError("methods: found none; give at least one, as in METHODS")
    if BASELINE[0] in methods:
        raise CosmicError(f"methods: {BASELINE[0]!r} stands for no intervention; use another name")
    check_count("n_samples", n_samples)
    if n_samples > 1 and temperature == 0:
        raise CosmicError(
            f"n_samples: greedy completions are all the same, and {n_samples} were asked for; set temperature"
        )
