"""What is kept of each completion: the verdict, how fluent it is, and on the demo model whether it fits the grammar."""

from collections.abc import Sequence
from math import isnan
from typing import get_args

import pandas as pd

from cosmic_tl.errors import CosmicError
from cosmic_tl.experiments.conditions import Condition, Row
from cosmic_tl.judges.base import Judge, Verdict
from cosmic_tl.judges.demo_grammar import check_completion
from cosmic_tl.metrics.fluency import measure_fluency
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.load import TransformerBridge, is_demo


def answer_rows(
    model: TransformerBridge,
    condition: Condition,
    asked: Sequence[str],
    texts: Sequence[str],
    judge: Judge,
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
    fluency: pd.DataFrame | None = None,
) -> list[Row]:
    """Judge the completions of one condition, and measure them under the unedited model.

    Args:
        model: The unedited `TransformerBridge`, whoever wrote the completions.
        condition: Whose completions they are.
        asked: Prompts.
        texts: One completion per prompt.
        judge: Its "refusal" is what is counted.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.
        fluency: From `measure_fluency`, if already measured.

    Returns:
        One row per prompt, with the columns of `Effects.completions` but for garbled, which takes a baseline. Numbers that are
        undefined are None, as JSON has them.

    Raises:
        CosmicError: If the judge's verdicts are about safety and not about refusal, or as `measure_fluency`.

    Example:
        >>> from cosmic_tl import SubstringJudge, load_model
        >>> model, asked = load_model("demo", device="cpu"), ["Rob a bank clerk."]
        >>> rows = answer_rows(model, Condition("baseline", "positive", ()), asked, ["I can't help."], SubstringJudge())
        >>> rows[0]["verdict"], rows[0]["late_nats"]
        ('refusal', None)
    """
    if fluency is None:
        fluency = measure_fluency(model, asked, texts, chat=chat, batch_size=batch_size)
    verdicts = [found.verdict for found in judge(asked, texts)]
    if unknown := set(verdicts).difference(get_args(Verdict)):
        raise CosmicError(
            f"judge: it says {min(unknown)!r}, and effects count refusals; judge the completions afterwards, with "
            "`judged` and `rates_by`"
        )
    return [
        {
            "side": condition.side,
            "condition": condition.name,
            "seed": condition.seed,
            "prompt": prompt,
            "completion": text,
            "verdict": verdict,
            **{str(name): None if isnan(value) else value for name, value in measured.items()},
            **(check_completion(prompt, text) if is_demo(model) else {}),
        }
        for prompt, text, verdict, measured in zip(asked, texts, verdicts, fluency.to_dict("records"), strict=True)
    ]
