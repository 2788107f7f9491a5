"""Which prompts give what is exchanged, and on which its effects are measured."""

from cosmic_tl.data.contrast_set import ContrastSet, Prompts, sides_of
from cosmic_tl.errors import CosmicError
from cosmic_tl.experiments.options import Treatment


def exchanged_prompts(
    prompts: Prompts, treatment: Treatment, n_train: int | None, n_val: int | None
) -> tuple[tuple[list[str], list[str]], tuple[list[str], list[str]]]:
    """Both sides' prompts that give what is exchanged, and those on which effects are measured.

    Raises:
        CosmicError: If pairs are asked for, and there are none.

    Example:
        >>> exchanged_prompts((["a"], ["b"]), "paired", None, None)
        ((['a'], ['b']), (['a'], ['b']))
    """
    if treatment != "paired":
        return prompts_of(prompts, n_train, n_val)
    sides = _pairs(prompts, n_val)
    return sides, sides


def _pairs(prompts: Prompts, n: int | None) -> tuple[list[str], list[str]]:
    """Both sides of the validation pairs."""
    if isinstance(prompts, ContrastSet):
        pairs = prompts.contrast.get("val", ())[:n]
        if not pairs:
            raise CosmicError(f"prompts: {prompts.name!r} has no val pairs; use treatment='interchange'")
        sides = [one for one, _ in pairs], [other for _, other in pairs]
    else:
        sides = sides_of(prompts, "val", n)
        if len(sides[0]) != len(sides[1]):
            raise CosmicError(
                f"prompts: found {len(sides[0])} positive and {len(sides[1])} negative ones, and pairs are as many; give two "
                "lists of one length"
            )
    return sides


def prompts_of(
    prompts: Prompts, n_train: int | None, n_val: int | None
) -> tuple[tuple[list[str], list[str]], tuple[list[str], list[str]]]:
    """Both sides' training and validation prompts; of a pair of lists both are the same.

    Example:
        >>> prompts_of((["a", "b"], ["c"]), None, 1)
        ((['a', 'b'], ['c']), (['a'], ['c']))
    """
    train = prompts.sides("train", n_train) if isinstance(prompts, ContrastSet) else sides_of(prompts, "train")
    return train, sides_of(prompts, "val", n_val)
