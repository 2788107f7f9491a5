"""The groups of prompts on which an adversarial suffix is compared."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl.errors import check_texts
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.suffixes.tokens import frames, random_suffixes

HARMFUL, RANDOM, ADVERSARIAL, HARMLESS = (
    "harmful",
    "harmful + random suffix",
    "harmful + adversarial suffix",
    "harmless",
)
Groups = Mapping[str, Sequence[str]]
"""The four names above to prompts; the first three have the same prompts in the same order."""
REGIONS = ("instruction", "suffix", "template")
BARE_PROMPTS = ("x", "Q", "7", "a,")
"""Instructions without a common first token."""


@checked
def suffix_groups(
    model: TransformerBridge,
    harmful: Sequence[str],
    harmless: Sequence[str],
    suffix: str,
    *,
    chat: ChatFormat | None = None,
    seed: int = 0,
) -> dict[str, list[str]]:
    """The four groups of prompts that the analysis compares.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        harmful: Instructions that the model refuses.
        harmless: Instructions of the other side.
        suffix: Text of the adversarial suffix.
        chat: Formatting. Defaults to the plain chat template.
        seed: Seed of the random suffixes, which have the same number of tokens; one per prompt.

    Raises:
        CosmicError: If a prompt is blank or too long.

    Example:
        >>> from cosmic_tl import load_model
        >>> groups = suffix_groups(load_model("demo", device="cpu"), ["Rob a clerk."], ["Bake a pie."], " x x")
        >>> groups["harmful + adversarial suffix"]
        ['Rob a clerk. x x']
    """
    check_texts("harmful", harmful)
    check_texts("harmless", harmless)
    frame = frames(model, harmful[:1], chat)[0]
    row = tokenize(model, [harmful[0] + suffix], chat)[0]
    n_tokens = max(1, len(row) - len(frame.before) - len(frame.after))
    placebo = random_suffixes(model, harmful, n_tokens=n_tokens, chat=chat, seed=seed)
    return {
        HARMFUL: list(harmful),
        RANDOM: [prompt + text for prompt, text in zip(harmful, placebo, strict=True)],
        ADVERSARIAL: [prompt + suffix for prompt in harmful],
        HARMLESS: list(harmless),
    }


def summary_by_group(group: str, values: Tensor, where: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Mean and standard deviation over prompts (the first dimension), one row per value."""
    sd = values.std(0) if len(values) > 1 else torch.full_like(values[0], torch.nan)
    numbers = {"mean": values.mean(0).tolist(), "sd": sd.tolist(), "n": len(values)}
    return pd.DataFrame({"group": group, **where, **numbers})
