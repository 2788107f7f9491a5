"""The effect of a direction on completions: baseline, removal, induction, and placebos beside them, in paired tests."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from typing import Any

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.data.contrast_set import Prompts, Side, labels_of, sides_of
from cosmic_tl.errors import CosmicError
from cosmic_tl.experiments.answer_rows import answer_rows
from cosmic_tl.experiments.answering import written
from cosmic_tl.experiments.conditions import REFUSAL, Condition, Row, Terms, standard_conditions, terms_of
from cosmic_tl.experiments.known_rows import done_conditions
from cosmic_tl.experiments.paired import TESTED, Paired, mcnemar, with_seed
from cosmic_tl.generation.sampling import Sampling, describe_generation
from cosmic_tl.judges.base import Judge
from cosmic_tl.judges.substring import SubstringJudge
from cosmic_tl.metrics.fluency import garbled_share, mark_garbled
from cosmic_tl.metrics.rates import Rate, rate
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.selection.result import Selection


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Effects(Result):
    """Completions under every condition, and what they come to."""

    completions: pd.DataFrame
    """One row per completion: side, condition, seed (of a placebo; None for others), prompt, completion, verdict,
    cross_entropy, late_nats and repetition (`metrics.fluency`), garbled (if there is a condition without interventions to
    compare with), and with the demo model well_formed and names_topic. The verdict "refusal" stands for whatever the judge
    looked for."""
    terms: Terms = REFUSAL
    """What people are shown."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """How completions were generated: `describe_generation`, and the seed."""

    def rate(self, side: Side, condition: str) -> Rate:
        """Refusal rate under one condition; with phrases of its own, the share of completions with the concept.

        Of a placebo with several seeds it is the mean, and `low` and `high` are the lowest and the highest seed's rate in
        place of the Wilson interval; `n` counts prompts.

        Args:
            side: "positive" or "negative".
            condition: Its name.

        Raises:
            CosmicError: If there are no such completions.

        Example:
            >>> row = {"side": "positive", "condition": "baseline", "verdict": "refusal"}
            >>> Effects(pd.DataFrame([row])).rate("positive", "baseline").value
            1.0
        """
        return self._share(side, condition, lambda some: some.verdict == "refusal")

    def _share(self, side: Side, condition: str, counted: Callable[[pd.DataFrame], "pd.Series[bool]"]) -> Rate:
        """A share with its Wilson interval; of several seeds the mean and the range."""
        rates = [rate(int(counted(some).sum()), len(some)) for some in self._seeds(side, condition)]
        if len(rates) == 1:
            return rates[0]
        values = [one.value for one in rates]
        return Rate(sum(values) / len(values), min(values), max(values), rates[0].n)

    def _seeds(self, side: Side, condition: str) -> list[pd.DataFrame]:
        """The completions of one condition, a frame per seed."""
        return [some for _, some in with_seed(self._of(side, condition)).groupby("seed", sort=False)]

    def by_seed(self) -> pd.DataFrame:
        """As `table`, with a row per seed of a placebo and its own Wilson interval.

        Example:
            >>> row = {"side": "negative", "condition": "random induction", "verdict": "refusal", "cross_entropy": 0.5}
            >>> rows = [{**row, "seed": 0}, {**row, "seed": 1, "verdict": "compliance"}]
            >>> Effects(pd.DataFrame(rows)).by_seed().rate.tolist()
            [1.0, 0.0]
        """
        frame = with_seed(self.completions)
        found = []
        for (_, _, seed), some in frame.groupby(["side", "condition", "seed"], sort=False):
            found.append(Effects(some.drop(columns="seed")).table.assign(seed=None if seed == "none" else seed))
        return pd.concat(found, ignore_index=True)

    def paired(self, side: Side, condition: str, against: str) -> Paired:
        """Whether two conditions differ on the same prompts: McNemar's exact test, two-sided.

        Only prompts that one condition refuses and the other does not tell them apart. Where one of them is a placebo with
        several seeds, the seed with the largest p stands for all.

        Args:
            side: "positive" or "negative".
            condition: Name of one condition.
            against: Name of the other.

        Raises:
            CosmicError: If there are no such completions, or the prompts differ.

        Example:
            >>> prompts = [f"prompt {i}" for i in range(10)]
            >>> rows = [("baseline", p, "refusal") for p in prompts] + [("removal", p, "compliance") for p in prompts]
            >>> frame = pd.DataFrame(rows, columns=["condition", "prompt", "verdict"]).assign(side="positive")
            >>> found = Effects(frame).paired("positive", "removal", "baseline")
            >>> (found.only_condition, found.only_against, round(found.p_value, 4))
            (0, 10, 0.002)
        """
        found = []
        seeds = [self._seeds(side, name) for name in (condition, against)]
        for first, second in product(*seeds):
            if first.prompt.tolist() != second.prompt.tolist():
                raise CosmicError(
                    f"condition: {condition} and {against} were not made on the same prompts, in one order"
                )
            one, other, p = mcnemar(*((some.verdict == "refusal").tolist() for some in (first, second)))
            n_seeds = max(map(len, seeds)) if max(map(len, seeds)) > 1 else 0
            found.append(Paired(side, condition, against, len(first), one, other, p, n_seeds))
        return max(found, key=lambda one: one.p_value)

    def paired_table(self) -> pd.DataFrame:
        """Removal and induction against the baseline and every placebo on the same prompts, a row per test (`paired`).

        Example:
            >>> rows = [("baseline", "hi", "refusal"), ("removal", "hi", "compliance")]
            >>> frame = pd.DataFrame(rows, columns=["condition", "prompt", "verdict"]).assign(side="positive")
            >>> Effects(frame).paired_table().against.tolist()
            ['baseline']
        """
        rows = []
        for side, name in TESTED.items():
            conditions = self.completions[self.completions.side == side].condition.unique().tolist()
            if name in conditions:
                rows += [asdict(self.paired(side, name, other)) for other in conditions if other != name]
        return pd.DataFrame(rows, columns=[one.name for one in fields(Paired)])

    def garbled(self, side: Side, condition: str) -> Rate:
        """Share of garbled completions under one condition; a low refusal rate says nothing without it.

        Raises:
            CosmicError: If there is no such condition, or none without steering to compare with.

        Example:
            >>> row = {"side": "positive", "condition": "removal", "verdict": "compliance", "garbled": True}
            >>> Effects(pd.DataFrame([row])).garbled("positive", "removal").value
            1.0
        """
        if "garbled" not in self.completions:
            raise CosmicError("garbled: no condition without interventions to compare with; measure a baseline too")
        return self._share(side, condition, lambda some: some.garbled)

    def _of(self, side: Side, condition: str) -> pd.DataFrame:
        some = self.completions[(self.completions.side == side) & (self.completions.condition == condition)]
        if some.empty:
            pairs = self.completions[["side", "condition"]].drop_duplicates().itertuples(index=False)
            known = "; ".join(f"{one.side}, {one.condition}" for one in pairs)
            raise CosmicError(f"condition: no {condition!r} on {side!r} prompts; there are {known}")
        return some

    @property
    def table(self) -> pd.DataFrame:
        """One row per condition: refusal rate (`rate`) with interval, cross-entropy, the share of garbled completions, and
        the demo's grammar check.

        A placebo has one row for all its seeds: means, with the lowest and the highest seed's rate as `low` and `high`. If
        there are any, `seeds` counts them (0 for conditions without).

        `well_formed` is the share that the demo's grammar could have made, `names_topic` the share of compliant ones
        among them that name what was asked about.

        Example:
            >>> row = {"side": "positive", "condition": "baseline", "verdict": "refusal", "cross_entropy": 0.5}
            >>> Effects(pd.DataFrame([row])).table.rate.tolist()
            [1.0]
        """
        rows = []
        placebos = "seed" in self.completions and self.completions.seed.notna().any()
        for (side, condition), some in self.completions.groupby(["side", "condition"], sort=False):
            found = self.rate(side, condition)
            row: Row = {
                "side": side,
                "condition": condition,
                "n": found.n,
                "rate": found.value,
                "low": found.low,
                "high": found.high,
                "cross_entropy": some.cross_entropy.astype(float).mean(),
            }
            if placebos:
                row["seeds"] = some.seed.nunique()  # None does not count
            if "garbled" in some:
                row["garbled"] = garbled_share(some)
            if "well_formed" in some:
                row["well_formed"] = some.well_formed.mean()
                row["names_topic"] = (
                    some.names_topic[some.well_formed & (some.verdict == "compliance")].astype(float).mean()
                )
            rows.append(row)
        return pd.DataFrame(rows)

    def _lines(self) -> list[str]:
        n = len(self.completions)
        seeds = with_seed(self.completions).groupby(["side", "condition"]).seed.nunique()
        several = "; of several seeds their range" * bool((seeds > 1).any())
        return [f"Effects: {n} completion{'s' * (n != 1)}, 95 % intervals{several}"]

    def _shown(self) -> pd.DataFrame:
        return self.terms.of(self.table)


@checked
def measure_effects(
    model: TransformerBridge,
    prompts: Prompts,
    selection: Selection | None = None,
    *,
    conditions: Sequence[Condition] | None = None,
    n: int | None = None,
    chat: ChatFormat | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int | None = None,
    known: Sequence[Row] = (),
    on_rows: Callable[[list[Row]], object] = lambda rows: None,
    judge: Judge | None = None,
    sampling: Sampling | None = None,
) -> Effects:
    """Complete every prompt under every condition, and judge.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompts: A contrast set, whose test prompts are taken, or a pair of lists: positive and negative prompts.
        selection: What was chosen; the conditions are then `standard_conditions(selection)`.
        conditions: Conditions of your own, in place of a selection.
        n: The first prompts of each side, at most. Default all.
        chat: Formatting. Defaults to the plain chat template.
        max_new_tokens: Maximum number of new tokens. Default 64.
        temperature: 0 (default) is greedy.
        seed: For sampling.
        batch_size: Prompts per batch. Default: by memory, at most 128 for completions, else 32.
        known: Rows of conditions that are already done, on these prompts.
        on_rows: Called with the rows of each condition as it is done.
        judge: Its "refusal" is what is counted. Defaults to the phrases of refusals; `SubstringJudge(("ahoy",))` counts the
            completions that show another concept.
        sampling: Top-k, top-p and repetition penalty. Default none of them, whatever the checkpoint's defaults are.

    Raises:
        CosmicError: As `complete`; if neither or both of selection and conditions are given, two conditions have the same side,
            name and seed, or the judge's verdicts are about safety and not about refusal.

    Example:
        >>> from cosmic_tl import load_model
        >>> baseline = [Condition("baseline", "positive", ()), Condition("baseline", "negative", ())]
        >>> asked = ["Rob a bank clerk."], ["Bake a pizza."]
        >>> effects = measure_effects(load_model("demo", device="cpu"), asked, conditions=baseline)
        >>> effects.completions.verdict.tolist()
        ['refusal', 'compliance']
    """
    if (selection is None) == (conditions is None):
        raise CosmicError("conditions: give a selection, or conditions=[…] of your own")
    if conditions is None:
        assert selection is not None
        conditions = standard_conditions(selection, seed=seed)
    positive, negative = sides_of(prompts, "test", n)
    judge = judge or SubstringJudge()
    generation = describe_generation(model, max_new_tokens, temperature, sampling)
    rows = list(known)
    asked: dict[Side, list[str]] = {"positive": positive, "negative": negative}
    done = done_conditions(rows, asked, ("condition", "seed"))
    labels = [one.label for one in conditions]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise CosmicError(f"conditions: several are {twice[0]!r}; give each a name or a seed of its own")
    missing = [one for one in conditions if (one.side, one.name, one.seed) not in done]
    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "sampling": sampling}
    how = {"chat": chat, "batch_size": batch_size}
    # Once for all conditions, which have the same prompts.
    rows_of = {
        side: tokenize(model, asked[side], chat, max_new_tokens) for side in dict.fromkeys(one.side for one in missing)
    }
    for condition, texts, fluency in written(model, missing, rows_of, settings, how):
        some = asked[condition.side]
        new = answer_rows(model, condition, some, texts, judge, chat=chat, batch_size=batch_size, fluency=fluency)
        on_rows(new)
        rows += new
    order = {(one.side, one.name, one.seed): number for number, one in enumerate(conditions)}
    # Stable, so that prompts stay in order: conditions may be done in any.
    rows.sort(key=lambda row: order.get((row["side"], row["condition"], row.get("seed")), -1))
    frame = pd.DataFrame(rows)
    frame["seed"] = pd.Series([row.get("seed") for row in rows], dtype=object)  # None and not NaN, which JSON lacks
    terms = terms_of(judge.phrases if isinstance(judge, SubstringJudge) else None, labels_of(prompts))
    unsteered = {(condition.side, condition.name) for condition in conditions if not condition.interventions}
    baseline = pd.Series([place in unsteered for place in zip(frame.side, frame.condition, strict=True)], frame.index)
    if baseline.any():
        frame["garbled"] = mark_garbled(model, frame, baseline, chat=chat, batch_size=batch_size)
    return Effects(frame, terms, {**generation, "seed": seed})
