"""Erasure of a concept by second moments: LEACE, the orthogonal projection, and optimal transport between the classes.

The statistics come from the concept-erasure package (Belrose et al. 2023, "LEACE: perfect linear concept erasure in
closed form"), in one streaming pass; the results are affine maps for `MapEdit`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.concept_erasure import concept_erasure
from cosmic_tl._util.progress import track
from cosmic_tl.data.contrast_set import Prompts, Side, sides_of
from cosmic_tl.errors import CosmicError, check_texts, one_of
from cosmic_tl.interventions.affine_map import AffineMap
from cosmic_tl.interventions.edits import Interventions, MapEdit
from cosmic_tl.interventions.steer import intervention_hooks
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.fingerprint import model_fingerprint
from cosmic_tl.model.forward import read
from cosmic_tl.model.hooks import Site
from cosmic_tl.model.load import TransformerBridge, short_label

ErasureMethod = Literal["leace", "orth"]


@checked
@dataclass(frozen=True, eq=False)
class Eraser:
    """A projection that removes a concept from the stream, and the points that the concept can be set to.

    `leftᵀ right` has rank one. For LEACE it is the oblique projection onto `r = mu − nu` that changes the activations
    least among all affine maps after which no linear probe distinguishes the classes; for "orth" it is `r̂ r̂ᵀ`.
    """

    left: Float64[Tensor, "rank d_model"]
    """Written vectors, one per row: the package's `proj_left`, transposed."""
    right: Float64[Tensor, "rank d_model"]
    """Read vectors, one per row: the package's `proj_right`."""
    mean: Float64[Tensor, " d_model"]
    """Mean over both classes, to which erasure sets the concept: the package's `bias`."""
    vector: Float64[Tensor, " d_model"]
    """`r = mu − nu`."""
    reference: Float64[Tensor, " d_model"]
    """`nu`, the mean of the negative class."""
    method: ErasureMethod
    fingerprint: str = ""
    """`model_fingerprint` of the model it was fit in; "" applies to any."""
    model: str = ""
    """Name of that model, for people."""

    def __repr__(self) -> str:
        rank, d_model = self.left.shape
        return f"Eraser({self.method}, rank {rank}, d_model {d_model}, the classes' means {float(self.vector.norm()):.3g} apart)"

    def map(self, alpha: float | None = None) -> AffineMap:
        """`x' = x − leftᵀ right (x − p)`.

        Args:
            alpha: None (the default) erases: `p` is the mean of both classes, so the mean does not change. A number
                edits, standardised as in affine concept editing: `p = nu + α r`, so that 0 reads as the negative class
                and 1 as the positive class. With "orth" this equals `AffineEdit`.

        Example:
            >>> one, zero = torch.eye(1, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
            >>> eraser = Eraser(one, one, zero + 2.5, 5 * one[0], zero, "orth")
            >>> [eraser.map(alpha)(torch.tensor([7.0, 8.0, 9.0])).tolist() for alpha in (None, 0.0, 1.0)]
            [[2.5, 8.0, 9.0], [0.0, 8.0, 9.0], [5.0, 8.0, 9.0]]
        """
        point = self.mean if alpha is None else self.reference + alpha * self.vector
        return AffineMap(self.left, self.right, self.right @ point, self.fingerprint, self.model)


@checked
def fit_eraser(
    model: TransformerBridge,
    prompts: Prompts,
    *,
    layers: Sequence[int],
    positions: Sequence[int] = (-1,),
    method: ErasureMethod = "leace",
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
    shrinkage: bool = True,
    interventions: Interventions = (),
) -> dict[int, Eraser]:
    """Fit erasers of a contrast set's concept at the inputs of some layers, in one pass over the prompts.

    All layers are fit on the same stream, by default the clean one (`fit_scrubber` fits one after the other). LEACE
    needs a float64 matrix of `d_model × d_model` per layer.

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set, whose train prompts are taken, or a pair of lists: positive and negative prompts.
        layers: Where: `hook_resid_pre` of these blocks.
        positions: Token positions, counted from the end; each of a prompt's is a sample of its own. Default the last.
        method: "leace" (default) or "orth".
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.
        shrinkage: Whether to estimate LEACE's covariance with the package's optimal linear shrinkage, which helps if
            there are not many times `d_model` samples. The class means become equal either way.
        interventions: Edits in place while activations are read. Defaults to none.

    Returns:
        Layer to eraser.

    Raises:
        CosmicError: If concept-erasure is not installed, a side, the layers or the positions are empty or out of range,
            or the classes do not differ enough.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> sides = [prompts.side(side, "train", 20) for side in ("positive", "negative")]
        >>> eraser = fit_eraser(model, sides, layers=[4])[4]
        >>> erased = [eraser.map()(mean) for mean in (eraser.reference, eraser.reference + eraser.vector)]
        >>> torch.allclose(*erased)
        True
    """
    positive, negative = sides_of(prompts, "train")
    one_of("method", method, get_args(ErasureMethod))
    package = concept_erasure()
    # One concept of two classes has one singular value, which no tolerance should cut, and its map never increases the
    # variance, which the package's constraint is there to prevent.
    options = {"shrinkage": shrinkage, "svd_tol": 1e-12, "constrain_cov_trace": False, "dtype": torch.float64}
    fitters = {layer: package.LeaceFitter(int(model.cfg.d_model), 1, method, **options) for layer in layers}
    for labels, activations in _samples(model, positive, negative, layers, positions, chat, batch_size, interventions):
        for layer, x in activations.items():
            fitters[layer].update(x, labels)
    origin = model_fingerprint(model), short_label(model)
    return {layer: _eraser(fitter, layer, method, origin) for layer, fitter in fitters.items()}


@checked
def fit_scrubber(
    model: TransformerBridge,
    prompts: Prompts,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] = (-1,),
    method: ErasureMethod = "leace",
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
    shrinkage: bool = True,
) -> dict[int, Eraser]:
    """Concept scrubbing: fit erasers of consecutive layers, each with the lower ones in place (Belrose et al. 2023,
    section 5).

    Later layers can compute a concept again from other tokens, or from parts of the stream that an eraser fit on the
    clean stream does not cover. Here each layer's eraser removes what the earlier ones have left. Takes one pass over
    the prompts per layer, up to that layer.

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set, whose train prompts are taken, or a pair of lists: positive and negative prompts.
        layers: Layers, in any order. Defaults to all but the first, where the template's tokens are the same in all
            prompts.
        positions: As in `fit_eraser`; use the scope of tokens that the edits will have (every token's edit is the same map).
        method: "leace" (default) or "orth".
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.
        shrinkage: As in `fit_eraser`.

    Returns:
        Layer to eraser; `[MapEdit(eraser.map(), layer) for layer, eraser in found.items()]` scrubs.

    Raises:
        CosmicError: As `fit_eraser`.

    Example:
        >>> from cosmic_tl import MapEdit, complete, load_model, load_prompts
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> sides = [prompts.side(side, "train", 20) for side in ("positive", "negative")]
        >>> scrubber = fit_scrubber(model, sides, layers=[3, 4])
        >>> edits = [MapEdit(eraser.map(), layer) for layer, eraser in scrubber.items()]
        >>> len(complete(model, ["Bake a pie."], edits, max_new_tokens=4))
        1
    """
    wanted = range(1, int(model.cfg.n_layers)) if layers is None else sorted(layers)
    found: dict[int, Eraser] = {}
    for layer in wanted:
        below = [MapEdit(eraser.map(), at) for at, eraser in found.items()]
        found |= fit_eraser(
            model,
            prompts,
            layers=[layer],
            positions=positions,
            method=method,
            chat=chat,
            batch_size=batch_size,
            shrinkage=shrinkage,
            interventions=below,
        )
    return found


def _eraser(fitter: Any, layer: int, method: ErasureMethod, origin: tuple[str, str]) -> Eraser:
    share = fitter.mean_z
    vector = fitter.sigma_xz_[:, 0] / (fitter.n * share * (1 - share))
    found = fitter.eraser
    reference = fitter.mean_x - share * vector
    eraser = Eraser(found.proj_left.mT, found.proj_right, found.bias, vector, reference, method, *origin)
    left_over = vector - eraser.left.mT @ (eraser.right @ vector)
    if not (vector.norm() > 1e-9 * fitter.mean_x.norm() and left_over.norm() < 1e-6 * vector.norm()):
        raise CosmicError(
            f"prompts: at layer {layer} the two sides' activations cannot be made equal (their means differ by "
            f"{float(vector.norm()):.3g}, {int(fitter.n)} samples); leave the layer out "
            "(below the first attention a template's tokens are all alike), or give more prompts"
        )
    return eraser


@checked
def fit_quadratic_editor(
    model: TransformerBridge,
    prompts: Prompts,
    *,
    layers: Sequence[int],
    source: Side = "positive",
    positions: Sequence[int] = (-1,),
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
    shrinkage: bool = True,
) -> dict[int, AffineMap]:
    """Fit maps that give one class's activations the mean and covariance of the other's, by optimal transport.

    `x' = target mean + T (x − source mean)`, where `T` is the symmetric positive definite matrix that maps the source's
    covariance to the target's. Unlike an eraser it has full rank, and is meant for activations of the source class
    only: you must know the class of a prompt.

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set, whose train prompts are taken, or a pair of lists: positive and negative prompts.
        layers: Where: `hook_resid_pre` of these blocks.
        source: Which side is edited to look like the other. Default "positive".
        positions: As in `fit_eraser`.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.
        shrinkage: Whether to shrink each covariance towards a multiple of the identity, as the package does (optimal
            linear shrinkage), so that it is invertible for any number of samples. The map then relates these
            *estimates*. Without shrinkage the map relates the sample covariances, and every side needs more than
            `d_model` samples.

    Returns:
        Layer to map.

    Raises:
        CosmicError: As `fit_eraser`; or if a class's covariance is singular.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> sides = [prompts.side(side, "train", 20) for side in ("positive", "negative")]
        >>> fit_quadratic_editor(model, sides, layers=[4])[4].left.shape
        torch.Size([128, 128])
    """
    positive, negative = sides_of(prompts, "train")
    one_of("source", source, get_args(Side))
    package, width = concept_erasure(), int(model.cfg.d_model)
    fitters = {layer: package.QuadraticFitter(width, 2, shrinkage=shrinkage, dtype=torch.float64) for layer in layers}
    for labels, activations in _samples(model, positive, negative, layers, positions, chat, batch_size):
        for layer, x in activations.items():
            for label, some in ((0, x[~labels]), (1, x[labels])):
                if len(some):
                    fitters[layer].update_single(some, label)
    start, end = (1, 0) if source == "positive" else (0, 1)
    origin = model_fingerprint(model), short_label(model)
    eye, maps = torch.eye(width, dtype=torch.float64), {}
    for layer, fitter in fitters.items():
        smallest = torch.linalg.eigvalsh(fitter.sigma_xx)
        if not (smallest[:, 0] > width * torch.finfo(torch.float64).eps * smallest[:, -1]).all():
            raise CosmicError(
                f"prompts: {int(fitter.n.min())} samples a side leave the covariance at layer {layer} singular; "
                f"give well over {width} a side, or shrinkage=True"
            )
        editor = fitter.editor()
        transport, means = editor.ot_maps[start, end], editor.class_means
        maps[layer] = AffineMap(eye, eye - transport, means[end] - transport @ means[start], *origin)
    return maps


def _samples(
    model: TransformerBridge,
    positive: Sequence[str],
    negative: Sequence[str],
    layers: Sequence[int],
    positions: Sequence[int],
    chat: ChatFormat | None,
    batch_size: int | None,
    interventions: Interventions = (),
) -> Iterator[tuple[Bool[Tensor, " sample"], dict[int, Float64[Tensor, "sample d_model"]]]]:
    """Batches of labels (true for the positive side) and of the stream that enters each layer."""
    check_texts("positive", positive)
    check_texts("negative", negative)
    if not positive or not negative:
        raise CosmicError(
            f"prompts: {len(positive)} positive and {len(negative)} negative given; both sides are needed"
        )
    if not layers or not positions or max(positions) >= 0:
        raise CosmicError(
            f"layers, positions: found {list(layers)} and {list(positions)}; name at least one of each, positions "
            "counted from the end (-1 is the last)"
        )
    rows = tokenize(model, [*positive, *negative], chat)
    hooks = intervention_hooks(model, interventions)
    sites: list[tuple[int, Site]] = [(layer, "hook_resid_pre") for layer in layers]
    with track(len(rows), "covariances") as advance:
        for batch in batches(model, rows, batch_size):
            found = read(model, batch, sites, n_positions=-min(positions), hooks=hooks)
            labels = torch.tensor([row < len(positive) for row in batch.rows]).repeat_interleave(len(positions))
            yield labels, {at: x[:, list(positions)].flatten(0, 1).cpu().double() for (at, _), x in found.items()}
            advance(len(batch.rows))
