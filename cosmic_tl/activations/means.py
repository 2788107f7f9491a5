"""Means of activations in one streaming pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import ACTIVATIONS, stage, track
from cosmic_tl.activations.sums import SITES, Splits, added, summed_up
from cosmic_tl.data.contrast_set import Prompts, sides_of
from cosmic_tl.errors import CosmicError
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.fingerprint import model_fingerprint
from cosmic_tl.model.forward import check_positions
from cosmic_tl.model.load import TransformerBridge, short_label
from cosmic_tl.model.positions import Positions, post_instruction_positions
from cosmic_tl.model.shortcuts import shared_prefix


@checked
@dataclass(frozen=True, eq=False)
class MeanActivations:
    """Means over prompts, accumulated in float64."""

    resid_pre: Float64[Tensor, "layer position d_model"]
    """Mean of `x[l, i]`, the stream that enters block `l`, at the post-instruction positions."""
    resid_post: Float64[Tensor, "layer position d_model"]
    """Mean of `y[l, i]`, the stream that leaves block `l`, at the same positions."""
    n: int
    """Number of prompts."""
    fingerprint: str = ""
    """`model_fingerprint` of the model; "" for unknown."""
    model: str = ""
    """Its name, for people."""
    splits: Mapping[int, Float64[Tensor, "layer position d_model"]] = field(default_factory=dict)
    """Seed to the difference between the means of `x[l, i]` over two random halves of the prompts."""
    squares: Float64[Tensor, "layer position"] | None = None
    """Mean of `‖x[l, i]‖²` over the prompts; None for unknown."""

    @property
    def variance(self) -> Float64[Tensor, "layer position"] | None:
        """Trace of the covariance of `x[l, i]` (with n − 1): how widely prompts are spread. None for unknown, or one prompt.

        Example:
            >>> from cosmic_tl import load_model
            >>> found = mean_activations(load_model("demo", device="cpu"), ["hi", "hello there"]).variance
            >>> found.shape, bool((found >= 0).all())
            (torch.Size([8, 5]), True)
        """
        if self.squares is None or self.n < 2:
            return None
        return (self.squares - self.resid_pre.square().sum(-1)).clamp(min=0) * (self.n / (self.n - 1))

    def __repr__(self) -> str:
        n_layers, n_positions, d_model = self.resid_pre.shape
        return f"MeanActivations({self.n} prompts, {n_layers} layers, {n_positions} positions, d_model {d_model})"


@checked
def mean_activations(
    model: TransformerBridge,
    prompts: Sequence[str],
    *,
    positions: Positions | None = None,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
    label: str = "activations",
    splits: Splits | None = None,
) -> MeanActivations:
    """Mean activations at every layer and post-instruction position, in one pass over the prompts.

    Args:
        model: A `TransformerBridge`.
        prompts: Instructions.
        positions: From `post_instruction_positions` (the default).
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.
        label: Name on the progress bar.
        splits: From `random_splits`: also take the difference between the means of two random halves, in the same pass.

    Raises:
        CosmicError: If a prompt is blank, too long, or shorter than the positions.

    Example:
        >>> from cosmic_tl import load_model
        >>> mean_activations(load_model("demo", device="cpu"), ["hi", "hello there"]).resid_pre.shape
        torch.Size([8, 5, 128])
    """
    positions = positions or post_instruction_positions(model, chat)
    return mean_of_rows(
        model,
        tokenize(model, prompts, chat),
        n_positions=len(positions),
        batch_size=batch_size,
        label=label,
        splits=splits,
    )


@checked
def mean_of_rows(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    *,
    n_positions: int = 1,
    batch_size: int | None = None,
    label: str = "activations",
    splits: Splits | None = None,
) -> MeanActivations:
    """Mean activations at every layer and the last positions, for prompts given as tokens.

    Tokens that all prompts begin with are run once.

    Args:
        model: A `TransformerBridge`.
        rows: Token ids.
        n_positions: How many of the last positions.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.
        label: Name on the progress bar.
        splits: From `random_splits`, for as many prompts.

    Raises:
        CosmicError: If a prompt is shorter than the positions.

    Example:
        >>> from cosmic_tl import load_model
        >>> mean_of_rows(load_model("demo", device="cpu"), [[5, 6, 7], [8, 9]]).resid_pre.shape
        torch.Size([8, 1, 128])
    """
    n_layers = int(model.cfg.n_layers)
    check_positions(min(map(len, rows)), n_positions)
    n_prefix = shared_prefix(model, rows, n_positions)
    with track(len(rows), label) as advance:
        parts = added(model, rows, n_positions, n_prefix, batch_size, label, splits or {}, advance)
        total = summed_up(model, parts)
    means = {site: total[site] / len(rows) for site in SITES}
    for layer in range(n_layers):
        if not all(mean[layer].isfinite().all() for mean in means.values()):
            raise CosmicError(
                f"model: its activations at layer {layer} are not finite; its weights are damaged, or {model.cfg.dtype} is too "
                "narrow for it: try another dtype"
            )
    origin = model_fingerprint(model), short_label(model)
    halves = {seed: total[f"half {seed}"] for seed in splits or {}}
    return MeanActivations(
        means["hook_resid_pre"], means["hook_resid_post"], len(rows), *origin, halves, total["squares"] / len(rows)
    )


@checked
def random_splits(sizes: Sequence[int], seeds: Sequence[int]) -> tuple[Splits, ...]:
    """Random halves of several lists of prompts, as weights.

    The weighted sum over a list is the difference between the means of its halves. Averaged over both sides of a
    contrast set, it is a difference in means of randomly labelled prompts: each label gets half of each side, so that
    the concept cancels.

    Args:
        sizes: Number of prompts in each list.
        seeds: Seeds, one split per seed.

    Returns:
        For each list the weights of its prompts, by seed; all are 0 for a list of one prompt.

    Example:
        >>> positive, negative = random_splits([4, 3], seeds=[0, 1])
        >>> sorted(positive[0].tolist()), sorted(negative[1].tolist())
        ([-0.5, -0.5, 0.5, 0.5], [-0.5, -0.5, 1.0])
    """
    found: tuple[dict[int, Tensor], ...] = tuple({} for _ in sizes)
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for n, splits in zip(sizes, found, strict=True):
            order, half = torch.randperm(n, generator=generator), n // 2
            weights = torch.zeros(n, dtype=torch.float64)
            if half:
                weights[order[:half]], weights[order[half:]] = 1 / half, -1 / (n - half)
            splits[seed] = weights
    return found


@checked
def class_means(
    model: TransformerBridge,
    prompts: Prompts,
    *,
    positions: Positions | None = None,
    chat: ChatFormat | None = None,
    seeds: Sequence[int] = (),
    batch_size: int | None = None,
) -> tuple[MeanActivations, MeanActivations]:
    """Means of both sides of a contrast set, and of randomly labelled prompts in the same passes.

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set, whose train prompts are taken, or a pair of lists: positive and negative prompts.
        positions: From `post_instruction_positions` (the default).
        chat: Formatting. Defaults to the plain chat template.
        seeds: Seeds of random labellings (`random_splits`). Defaults to none.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Raises:
        CosmicError: As `mean_activations`.

    Example:
        >>> from cosmic_tl import load_model
        >>> sides = ["Rob a bank clerk.", "Rob a shop."], ["Bake a pizza.", "Bake a pie."]
        >>> positive, negative = class_means(load_model("demo", device="cpu"), sides, seeds=[0])
        >>> positive.splits[0].shape
        torch.Size([8, 5, 128])
    """
    stage(ACTIVATIONS)
    positive, negative = sides_of(prompts, "train")
    splits = random_splits([len(positive), len(negative)], seeds)
    found = [
        mean_activations(
            model,
            some,
            positions=positions,
            chat=chat,
            batch_size=batch_size,
            label=f"activations, {side}",
            splits=halves,
        )
        for side, some, halves in zip(("positive", "negative"), (positive, negative), splits, strict=True)
    ]
    if torch.equal(found[0].resid_post[-1], found[1].resid_post[-1]):
        raise CosmicError(
            "model: its last layer gives the same for positive and negative prompts; check its weights, its chat template, and "
            "that the two sides differ"
        )
    return found[0], found[1]
