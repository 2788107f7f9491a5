"""The effect of a suffix inside the model (Arditi et al. 2024, section 5).

Whether the direction still reaches the last token (figure 5), which heads write it there, and where these heads attend
(figure 6), each compared with the same prompts and a random suffix of the same length.
"""

from dataclasses import dataclass

import pandas as pd
from torch.nn.functional import cosine_similarity

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.activations import cache_activations
from cosmic_tl.data.contrast_set import Prompts, sides_of
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError
from cosmic_tl.generation.completions import complete
from cosmic_tl.judges.substring import judge_refusal
from cosmic_tl.metrics.rates import rate
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import post_instruction_positions
from cosmic_tl.suffixes.groups import ADVERSARIAL, HARMFUL, HARMLESS, RANDOM, Groups, suffix_groups, summary_by_group
from cosmic_tl.suffixes.heads import head_attention, head_contributions, top_heads


@checked
def suffix_cosines(
    model: TransformerBridge,
    groups: Groups,
    direction: Direction,
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> pd.DataFrame:
    """Cosine of `x[l, -1]` with the direction, by layer and group (Arditi et al. 2024, figure 5).

    Args:
        model: A `TransformerBridge`.
        groups: From `suffix_groups`, or with any other names.
        direction: The direction.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Returns:
        One row per group and layer: group, layer, mean, sd (of the sample), n.

    Raises:
        CosmicError: If the direction does not fit the model, or a prompt does not fit its context.

    Example:
        >>> import torch
        >>> from cosmic_tl import Direction, load_model
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> found = suffix_cosines(load_model("demo", device="cpu"), {"harmful": ["Rob a clerk."]}, direction)
        >>> list(found), len(found)
        (['group', 'layer', 'mean', 'sd', 'n'], 8)
    """
    direction.check(model)
    last = post_instruction_positions(model, chat, 1)
    tables = []
    for group, prompts in groups.items():
        stream = cache_activations(
            model, prompts, site="hook_resid_pre", positions=last, chat=chat, batch_size=batch_size
        )[:, :, 0].double()
        cosines = cosine_similarity(stream, direction.unit.double(), dim=-1)
        tables.append(summary_by_group(group, cosines, {"layer": range(cosines.shape[1])}))
    return pd.concat(tables, ignore_index=True)


@checked
@dataclass(frozen=True, eq=False, repr=False)
class SuffixAnalysis(Result):
    """The analysis of section 5 of Arditi et al. 2024, for one suffix."""

    rates: pd.DataFrame
    """Refusals by group, over all prompts: group, n, rate, low, high (Wilson, 95 %)."""
    cosines: pd.DataFrame
    """From `suffix_cosines`."""
    contributions: pd.DataFrame
    """From `head_contributions`."""
    attention: pd.DataFrame
    """From `head_attention`, for the strongest heads."""

    @property
    def table(self) -> pd.DataFrame:
        """`rates`.

        Example:
            >>> rates = pd.DataFrame({"group": ["harmful"], "rate": [0.5]})
            >>> SuffixAnalysis(rates, *[pd.DataFrame()] * 3).table.rate.tolist()
            [0.5]
        """
        return self.rates


@checked
def analyse_suffix(
    model: TransformerBridge,
    prompts: Prompts,
    suffix: str,
    direction: Direction,
    *,
    chat: ChatFormat | None = None,
    n_heads: int = 8,
    max_new_tokens: int = 64,
    seed: int = 0,
    batch_size: int | None = None,
) -> SuffixAnalysis:
    """Measure refusals in all four groups, and the mechanism on the harmful prompts on which the suffix works.

    It works on a prompt if the model refuses without it and complies with it.

    Args:
        model: A `TransformerBridge` with a tokenizer and attention patterns.
        prompts: A contrast set, whose test prompts are taken, or a pair of lists: positive and negative prompts.
        suffix: Text of the adversarial suffix.
        direction: The refusal direction.
        chat: Formatting. Defaults to the plain chat template.
        n_heads: Number of strongest heads to analyse. Default 8.
        max_new_tokens: Maximum number of new tokens per answer. Default 64.
        seed: Seed of the random suffixes. Default 0.
        batch_size: Prompts per batch. Default: by memory, at most 32.

    Raises:
        CosmicError: If the suffix works on none of the prompts, or as in the functions that it calls.

    Example:
        >>> import torch
        >>> from cosmic_tl import Direction, load_model
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> analyse_suffix(load_model("demo", device="cpu"), (["Rob a bank clerk."], ["Bake a pie."]), " x", direction)
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: suffix: it works on none of the 1 harmful prompts; search longer, or on more prompts
    """
    harmful, harmless = sides_of(prompts, "test")
    everything = suffix_groups(model, harmful, harmless, suffix, chat=chat, seed=seed)
    verdicts, rates = {}, []
    for group, asked in everything.items():
        answers = complete(
            model, asked, (), chat=chat, max_new_tokens=max_new_tokens, batch_size=batch_size, label=group
        )
        verdicts[group] = [judge_refusal(answer) for answer in answers]
        found = rate(verdicts[group].count("refusal"), len(asked))
        rates.append({"group": group, "n": found.n, "rate": found.value, "low": found.low, "high": found.high})
    pairs = zip(verdicts[HARMFUL], verdicts[ADVERSARIAL], strict=True)
    works = [i for i, pair in enumerate(pairs) if pair == ("refusal", "compliance")]
    if not works:
        raise CosmicError(
            f"suffix: it works on none of the {len(harmful)} harmful prompts; search longer, or on more prompts"
        )
    groups = {group: [everything[group][i] for i in works] for group in (HARMFUL, RANDOM, ADVERSARIAL)}
    groups[HARMLESS] = everything[HARMLESS]
    contributions = head_contributions(model, groups, direction, chat=chat, batch_size=batch_size)
    return SuffixAnalysis(
        pd.DataFrame(rates),
        suffix_cosines(model, groups, direction, chat=chat, batch_size=batch_size),
        contributions,
        head_attention(model, groups, top_heads(contributions, n=n_heads), chat=chat, batch_size=batch_size),
    )
