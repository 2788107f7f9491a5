"""What would fail in the middle of a run, said before it begins."""

from cosmic_tl.data.contrast_set import SPLITS, ContrastSet
from cosmic_tl.errors import CosmicError
from cosmic_tl.metrics.refusal_score import refusal_tokens
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.runs.settings import RunSettings
from cosmic_tl.selection.filters import check_places, positions_of


def check_run(model: TransformerBridge, prompts: ContrastSet, settings: RunSettings) -> None:
    """Check that model, prompts and settings fit together. Nothing is written.

    Args:
        model: The model.
        prompts: The contrast set.
        settings: Of the run.

    Raises:
        CosmicError: If a split has no prompts, one of them is too long or too short, or the model has no such layer, position
            or token.

    Example:
        >>> from cosmic_tl import CosmicOptions, load_model, load_prompts
        >>> settings = RunSettings(CosmicOptions(cell=(99, -1)))
        >>> check_run(load_model("demo", device="cpu"), load_prompts("demo"), settings)
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: cell: found layer 99, position -1; layers are 0 to 7 and positions -5 to -1
    """
    options, chat = settings.selection, settings.chat
    n_positions = len(positions_of(model, None, options, chat))
    check_places(int(model.cfg.n_layers), n_positions, options)
    if options.tokens is not None:
        refusal_tokens(model, options.tokens)
    sizes = {"train": options.n_train, "val": options.n_val, "test": settings.n_test}
    for split in SPLITS:
        for side in prompts.sides(split, sizes[split]):
            rows = tokenize(model, side, chat, settings.max_new_tokens if split == "test" else 0)
            if (shortest := min(map(len, rows))) < n_positions:
                raise CosmicError(
                    f"positions: {n_positions} asked for, and a prompt has only {shortest} tokens; ask for fewer positions"
                )
