"""Whether what this library promises holds on a model, measured against plain `transformers` and raw torch hooks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.check.cases import CHECKS
from cosmic_tl.check.memory import NotPossible
from cosmic_tl.check.subject import Subject
from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.data.prompts import load_prompts
from cosmic_tl.errors import CosmicError
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.load import TransformerBridge, model_label

Outcome = Literal["ok", "FAILED", "not checked"]


@checked
@dataclass(frozen=True)
class Check:
    """One promise, and what was found."""

    name: str
    measured: str
    tolerance: str
    result: Outcome

    def __str__(self) -> str:
        allowed = f" (tolerance {self.tolerance})" if self.tolerance else ""
        return f"{self.result:<11}  {self.name}: {self.measured}{allowed}"


@checked
@dataclass(frozen=True, eq=False)
class ModelCheck(Result):
    """What was checked on a model."""

    model: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed.

        Example:
            >>> ModelCheck("m", (Check("positions", "none found", "", "FAILED"),)).ok
            False
        """
        return all(check.result != "FAILED" for check in self.checks)

    @property
    def table(self) -> pd.DataFrame:
        """One row per check: check, measured, tolerance, result.

        Example:
            >>> ModelCheck("m", (Check("positions", "5", "", "ok"),)).table.result.tolist()
            ['ok']
        """
        rows = [(check.name, check.measured, check.tolerance, check.result) for check in self.checks]
        return pd.DataFrame(rows, columns=["check", "measured", "tolerance", "result"])

    def __repr__(self) -> str:
        failed = sum(check.result == "FAILED" for check in self.checks)
        head = f"ModelCheck({self.model}): {failed} of {len(self.checks)} checks failed"
        return "\n".join([head, *map(str, self.checks)])

    def _lines(self) -> list[str]:
        return repr(self).splitlines()[:1]


@checked
def check_model(
    model: TransformerBridge,
    prompts: ContrastSet | None = None,
    *,
    chat: ChatFormat | None = None,
    n: int = 4,
    on_check: Callable[[Check], object] = lambda check: None,
) -> ModelCheck:
    """Check on a few prompts that everything a selection rests on is right for a model.

    Positions, activations, scores and completions are compared with those of the same weights in plain `transformers`,
    edited by raw torch hooks. Where that is not possible, as for quantized or offloaded weights, a check is not made and says
    why. The weights are held once; tolerances are those of float32, or of 16-bit numbers where the model holds such.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompts: Training prompts of both sides are used. Default: the demo's.
        chat: Formatting. Defaults to the plain chat template.
        n: Prompts per side. Default 4.
        on_check: Called with each check as it is done.

    Raises:
        CosmicError: If `n` is below 2, or the prompts do not fit the model.

    Example:
        >>> from cosmic_tl import load_model
        >>> check_model(load_model("demo", device="cpu"), n=2).ok
        True
    """
    if n < 2:
        raise CosmicError(f"n: must be at least 2, found {n}")
    prompts = prompts or load_prompts("demo")
    subject = Subject(model, prompts.side("positive", "train", n), prompts.side("negative", "train", n), chat)
    found = []
    for name, check in CHECKS.items():
        try:
            measured, tolerance, holds = check(subject)
            result: Outcome = "ok" if holds else "FAILED"
        except NotPossible as error:
            measured, tolerance, result = str(error), "", "not checked"
        except Exception as error:  # whatever a model does wrong is what is asked for
            measured, tolerance, result = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", "", "FAILED"
        found.append(Check(name, measured, tolerance, result))
        on_check(found[-1])
    return ModelCheck(model_label(model), tuple(found))
