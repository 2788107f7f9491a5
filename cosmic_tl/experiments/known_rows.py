"""Rows that an earlier, stopped measurement left, checked before anything is made of them."""

from collections.abc import Mapping, Sequence

from cosmic_tl.data.contrast_set import Side
from cosmic_tl.errors import CosmicError
from cosmic_tl.experiments.conditions import Row


def done_conditions(
    known: Sequence[Row], asked: Mapping[Side, Sequence[str]], names: Sequence[str], n_samples: int = 1
) -> set[tuple[object, ...]]:
    """The conditions that rows belong to, each of which must have answered every prompt once per sample, in order.

    Args:
        known: The rows.
        asked: The prompts of each side.
        names: Columns that tell the conditions of a side apart.
        n_samples: Answers per prompt.

    Returns:
        Side and the values of those columns, per condition.

    Raises:
        CosmicError: If rows are missing, there twice, of other prompts, or no rows at all.

    Example:
        >>> row = {"side": "positive", "condition": "removal", "prompt": "Rob a bank.", "completion": "No.", "verdict": "refusal"}
        >>> done_conditions([row], {"positive": ["Rob a bank."]}, ["condition"])
        {('positive', 'removal')}
        >>> done_conditions([row, row], {"positive": ["Rob a bank."]}, ["condition"])
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: known: positive, removal takes one row per prompt and sample, 1 in all; found 2 ...
    """
    found: dict[tuple[object, ...], list[str]] = {}
    for row in known:
        if not {"side", "prompt", "completion", "verdict", *names} <= set(row) or row["side"] not in asked:
            raise CosmicError(f"known: found a row that is no answer ({str(dict(row))[:60]!r}); leave it out")
        found.setdefault((row["side"], *(row[name] for name in names)), []).append(row["prompt"])
    for (side, *rest), prompts in found.items():
        expected = [*asked[side]] * n_samples  # type: ignore[index]
        if prompts != expected:
            condition = ", ".join(str(value) for value in (side, *rest) if value is not None)
            raise CosmicError(
                f"known: {condition} takes one row per prompt and sample, {len(expected)} in all; found {len(prompts)} that are "
                "not; leave them out (of a run: delete its directory resume/)"
            )
    return set(found)
