"""COSMIC's selection and the one by refusal tokens, side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import stage
from cosmic_tl._util.results import Result
from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.errors import NoCandidateError, check_count
from cosmic_tl.experiments.conditions import Condition
from cosmic_tl.experiments.effects import Effects, measure_effects
from cosmic_tl.generation.sampling import Sampling
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.selection.cosmic import select_cosmic
from cosmic_tl.selection.options import CommonOptions, CosmicOptions, RefusalTokenOptions
from cosmic_tl.selection.refusal_tokens import select_by_refusal_tokens
from cosmic_tl.selection.result import Selection


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result):
    """Selections by two methods, and by several generators, on the same model and prompts."""

    selections: Mapping[str, Selection]
    """Those that found a direction: by method ("COSMIC"), or, with several generators, by both ("COSMIC, pca")."""
    failures: Mapping[str, str]
    """The same of those that found none, with the reason."""
    effects: Effects
    """Completions under nothing, and under removal and induction with each direction."""
    table: pd.DataFrame
    """One row per selection: method, generator, mode and alpha (of its edits), layer, position, cosine (to the first row's
    direction), kl (of its removal), wins (share of the resamples of the validation prompts that choose the same candidate), and
    rates on test prompts: positive, positive_removal, negative, negative_induction, removal_garbled, induction_garbled."""

    def _lines(self) -> list[str]:
        return ["Comparison", *(f"  {line}" for line in self.remarks)]

    @property
    def remarks(self) -> tuple[str, ...]:
        """Why a method found nothing, and the warnings and notes of what the others found, each beginning with the method.

        Example:
            >>> empty = pd.DataFrame()
            >>> Comparison({}, {"COSMIC": "selection: all ..."}, Effects(empty), empty).remarks
            ('COSMIC: selection: all ...',)
        """
        found = [f"{method}: {why}" for method, why in self.failures.items()]
        return (*found, *(f"{method}: {one}" for method, some in self.selections.items() for one in some.remarks))


@checked
def compare_selections(
    model: TransformerBridge,
    prompts: ContrastSet,
    *,
    cosmic: CosmicOptions | None = None,
    refusal_tokens: RefusalTokenOptions | None = None,
    chat: ChatFormat | None = None,
    n_test: int = 100,
    max_new_tokens: int = 64,
    seed: int = 0,
    batch_size: int | None = None,
    temperature: float = 0.0,
    sampling: Sampling | None = None,
) -> Comparison:
    """Choose a direction in both ways, and measure what each does.

    A method that finds none is reported and not an error, unless both do: where a model refuses everything, refusal
    tokens tell nothing apart (Siu et al. 2025).

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompts: The concept's contrast set.
        cosmic: COSMIC's settings. Default the paper's.
        refusal_tokens: The other's settings. Default the paper's.
        chat: Formatting. Defaults to the plain chat template.
        n_test: Test prompts per side. Default 100.
        max_new_tokens: Maximum number of new tokens. Default 64.
        seed: For sampling, with a temperature above 0. Default 0.
        batch_size: Rows per forward pass. Default: by memory.
        temperature: 0 (default) is greedy.
        sampling: Top-k, top-p and repetition penalty. Default none of them.

    Raises:
        NoCandidateError: If both find none, with COSMIC's reason.
        CosmicError: If settings do not fit the model or the prompts.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> small = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0)
        >>> tokens = RefusalTokenOptions(mode="affine", n_train=8, n_val=4, n_positions=1, max_kl=50.0)
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> found = compare_selections(model, prompts, cosmic=small, refusal_tokens=tokens, n_test=2)
        >>> found.table.method.tolist()
        ['COSMIC', 'refusal tokens']
    """
    (sampling or Sampling()).check(temperature)
    check_count("n_test", n_test)
    check_count("max_new_tokens", max_new_tokens)
    cosmic, refusal_tokens = cosmic or CosmicOptions(), refusal_tokens or RefusalTokenOptions()
    selections: dict[str, Selection] = {}
    failures: dict[str, str] = {}
    first: NoCandidateError | None = None

    def keep(method: str, options: CommonOptions, found: Selection) -> None:
        several = {found.generator: found, **found.rivals}
        for name in options.directions:
            label = method if len(options.directions) == 1 else f"{method}, {name}"
            if name in several:
                selections[label] = several[name]
            else:
                failures[label] = found.failures[name]

    try:
        stage("selection by COSMIC")
        keep("COSMIC", cosmic, select_cosmic(model, prompts, cosmic, chat=chat, batch_size=batch_size))
    except NoCandidateError as error:
        failures["COSMIC"], first = str(error), error
    try:
        stage("selection by refusal tokens")
        found = select_by_refusal_tokens(model, prompts, refusal_tokens, chat=chat, batch_size=batch_size)
        keep("refusal tokens", refusal_tokens, found)
    except NoCandidateError as error:
        failures["refusal tokens"] = str(error)
        if first is not None:
            raise first from error
    conditions = [Condition("baseline", "positive", ()), Condition("baseline", "negative", ())]
    for label, selection in selections.items():
        conditions.append(Condition(f"removal, {label}", "positive", (selection.removal(),)))
        conditions.append(Condition(f"induction, {label}", "negative", (selection.induction(),)))
    stage("completions")
    effects = measure_effects(
        model,
        prompts,
        n=n_test,
        conditions=conditions,
        chat=chat,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
        sampling=sampling,
    )
    reference = next(iter(selections.values())).direction.unit
    rows = [
        {
            "method": selection.method,
            "generator": selection.generator,
            "mode": selection.mode,
            "alpha": selection.alpha,
            "layer": selection.direction.layer,
            "position": selection.direction.position,
            "cosine": float(reference @ selection.direction.unit),
            "kl": float(selection.winner.kl),
            "wins": nan if selection.stability is None else selection.stability.wins,
            "positive": effects.rate("positive", "baseline").value,
            "positive_removal": effects.rate("positive", f"removal, {label}").value,
            "negative": effects.rate("negative", "baseline").value,
            "negative_induction": effects.rate("negative", f"induction, {label}").value,
            "removal_garbled": effects.garbled("positive", f"removal, {label}").value,
            "induction_garbled": effects.garbled("negative", f"induction, {label}").value,
        }
        for label, selection in selections.items()
    ]
    return Comparison(selections, failures, effects, pd.DataFrame(rows))
