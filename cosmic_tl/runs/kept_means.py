"""Means of the training prompts' activations, kept in a run's directory."""

from pathlib import Path

import torch

from cosmic_tl._util.sealed import DAMAGE, read_sealed, write_sealed
from cosmic_tl.activations import MeanActivations, class_means
from cosmic_tl.data.contrast_set import SIDES, ContrastSet
from cosmic_tl.errors import CosmicError, first_line
from cosmic_tl.model.fingerprint import model_fingerprint
from cosmic_tl.model.load import TransformerBridge, short_label
from cosmic_tl.model.positions import post_instruction_positions
from cosmic_tl.runs.settings import RunSettings


def kept_means(
    model: TransformerBridge, prompts: ContrastSet, settings: RunSettings, path: Path
) -> tuple[MeanActivations, MeanActivations]:
    """A run's means of the training prompts, taken once.

    Args:
        model: The model.
        prompts: The contrast set.
        settings: Of the run, as they were when the file was written.
        path: Where they are kept.

    Raises:
        CosmicError: If the file is damaged.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from cosmic_tl import CosmicOptions, load_model, load_prompts
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> settings = RunSettings(CosmicOptions(n_train=2, n_positions=1))
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "activations.safetensors"
        ...     taken, read = (kept_means(model, prompts, settings, path) for _ in range(2))
        >>> torch.equal(taken[0].resid_pre, read[0].resid_pre)
        True
    """
    options = settings.selection
    try:
        tensors = read_sealed(path)[1] if path.exists() else {}
    except DAMAGE as error:
        raise CosmicError(f"file: {str(path)!r} is damaged ({first_line(error)}); delete it") from error
    # Without the splits of these seeds they belong to an earlier run, whose scores hold all the same.
    if tensors and all(f"{side}.split.{seed}" in tensors for side in SIDES for seed in settings.seeds):
        origin = model_fingerprint(model), short_label(model)  # the settings were compared before
        return tuple(  # type: ignore[return-value]
            MeanActivations(
                tensors[f"{side}.pre"],
                tensors[f"{side}.post"],
                int(tensors[f"{side}.n"]),
                *origin,
                {seed: tensors[f"{side}.split.{seed}"] for seed in settings.seeds},
                tensors.get(f"{side}.squares"),
            )
            for side in SIDES
        )
    positions = post_instruction_positions(model, settings.chat, options.n_positions)
    positive, negative = class_means(
        model,
        prompts.sides("train", options.n_train),
        positions=positions,
        chat=settings.chat,
        seeds=settings.seeds,
        batch_size=settings.batch_size,
    )
    tensors = {}
    for side, means in zip(SIDES, (positive, negative), strict=True):
        tensors |= {
            f"{side}.pre": means.resid_pre,
            f"{side}.post": means.resid_post,
            f"{side}.n": torch.tensor(means.n),
            **({} if means.squares is None else {f"{side}.squares": means.squares}),
            **{f"{side}.split.{seed}": split for seed, split in means.splits.items()},
        }
    write_sealed(path, tensors, {})
    return positive, negative
