"""A direction for every category of prompts."""

from cosmic_tl._util.border import checked
from cosmic_tl.activations import stream_at
from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.fingerprint import model_fingerprint
from cosmic_tl.model.load import TransformerBridge, short_label


@checked
def category_directions(
    model: TransformerBridge,
    prompts: ContrastSet,
    layer: int,
    *,
    position: int = -1,
    least: int = 8,
    n_train: int | None = None,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> dict[str, Direction]:
    """Differences in means of each category of positive training prompts, against all negative ones.

    For `compare_directions`. With few prompts in a category its direction is noisy, and its cosines are too small; the error of
    the negative mean, which all share, makes them too large.

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set with `categories`.
        layer: From 0.
        position: Counted from the end. Default −1.
        least: Prompts that a category needs. Default 8.
        n_train: Training prompts per side. Default all.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Returns:
        Category to direction, in the order of the prompts.

    Raises:
        CosmicError: If no category has enough prompts, or a number is out of range.

    Example:
        >>> from cosmic_tl import load_model
        >>> asked = {"train": ("Rob a bank clerk.", "Rob a shop.", "Drown a goat.")}
        >>> kinds = {"Rob a bank clerk.": "theft", "Rob a shop.": "theft", "Drown a goat.": "cruelty"}
        >>> prompts = ContrastSet("example", asked, {"train": ("Bake a pie.",)}, categories=kinds)
        >>> category_directions(load_model("demo", device="cpu"), prompts, 4, least=2)
        {'theft': Direction(difference-in-means of theft, layer 4, position -1, norm ..., demo)}
    """
    check_count("least", least)
    sides = prompts.sides("train", n_train)
    named = [prompts.categories.get(prompt) for prompt in sides[0]]
    large = [name for name in dict.fromkeys(named) if name is not None and named.count(name) >= least]
    if not large:
        raise CosmicError(
            f"categories: none of {len(sides[0])} positive training prompts' categories has {least} of them; give prompts with "
            "categories, or a smaller `least`"
        )
    stream = stream_at(model, [*sides[0], *sides[1]], layer, position, chat=chat, batch_size=batch_size)
    reference, origin = stream[len(named) :].mean(0), (model_fingerprint(model), short_label(model))
    return {
        name: Direction(
            stream[[i for i, one in enumerate(named) if one == name]].mean(0) - reference,
            reference,
            layer,
            position,
            f"difference-in-means of {name}",
            *origin,
        )
        for name in large
    }
