"""Candidates by any generator: one direction for each layer and position, from the activations of single prompts there."""

from collections.abc import Callable, Mapping, Sequence
from pkgutil import resolve_name

import torch
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import ACTIVATIONS, stage
from cosmic_tl.data.contrast_set import ContrastSet, Prompts, sides_of
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.directions.names import GENERATORS, PAIRED, check_generators
from cosmic_tl.directions.pca import Rows
from cosmic_tl.errors import CosmicError, first_line
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.fingerprint import model_fingerprint
from cosmic_tl.model.layer_by_layer import layer_by_layer
from cosmic_tl.model.load import TransformerBridge, short_label
from cosmic_tl.model.positions import Positions, post_instruction_positions

Fit = Callable[[Rows, Rows], Tensor]
"""Activations of positive and of negative prompts at one place, `[prompt, d_model]` in float64, to a vector of any length and
sign."""
SAME = 1e-9
"""Means whose distance is a smaller share of their length do not differ."""


@checked
def make_candidates(
    model: TransformerBridge,
    prompts: Prompts,
    directions: Sequence[str] | Mapping[str, Fit],
    *,
    n_train: int | None = None,
    positions: Positions | None = None,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> dict[str, Candidates]:
    """Candidates by several generators, from the same prompts, in one pass.

    "dim": difference in means (Arditi et al. 2024). "pca": first principal component of both classes. "paired-pca": of pairs
    about their midpoints. "lat": of differences between randomly paired prompts. "probe": weight of a logistic regression.
    "lda": whitened difference in means. "leace": what LEACE reads. "projected": difference in means orthogonal to the reference.
    "winsorized" and "median": difference between robust centres. Formula, source and trap of each are with its function
    (`cosmic_tl.directions`).

    A vector's sign is that of the classes, and its length `(mu − nu)·v̂`: how far apart the classes' means are along it. α = 1
    then brings the negative class's mean as far along it as the positive one's, whatever the generator. Where the means do not
    differ there is no candidate. References are the negative class's means.

    Activations are held of one layer at a time (`layer_by_layer`).

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set, whose training prompts are taken, or a pair of lists: positive and negative prompts.
        directions: Names of generators, or functions of your own by name: of positive and negative activations, each
            `[prompt, d_model]`, to a vector.
        n_train: Training prompts per side, of a contrast set. Default all.
        positions: From `post_instruction_positions` (the default).
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Returns:
        Name to candidates.

    Raises:
        CosmicError: If a name is unknown, a generator needs pairs that the prompts do not have, or gives what is no vector.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> found = make_candidates(load_model("demo", device="cpu"), load_prompts("demo"), ["pca", "probe"], n_train=8)
        >>> found["probe"]
        Candidates(probe, 8 layers × 5 positions, d_model 128)
    """
    fits: Mapping[str, Fit]
    if isinstance(directions, Mapping):
        fits, paired = directions, frozenset[str]()
    else:
        fits = {name: generator(name) for name in check_generators(directions)}
        paired = PAIRED.intersection(fits)
    positions = positions or post_instruction_positions(model, chat)
    positive, negative = (
        prompts.sides("train", n_train) if isinstance(prompts, ContrastSet) else sides_of(prompts, "train")
    )
    stage(ACTIVATIONS)
    places = len(positions)
    pairs = _pairs(prompts, sorted(paired)[0]) if paired else ()
    members = [pair[side] for side in (0, 1) for pair in pairs]
    walks = [
        layer_by_layer(model, tokenize(model, some, chat), n_positions=places, batch_size=batch_size)
        for some in ([*positive, *negative], members)
        if some
    ]
    vectors: dict[str, list[Tensor]] = {name: [] for name in fits}
    references = []
    for found in zip(*walks, strict=True):
        classes = found[0][: len(positive)].double(), found[0][len(positive) :].double()
        references.append(classes[1].mean(0))
        for name, fit in fits.items():
            rows = (found[1][: len(pairs)].double(), found[1][len(pairs) :].double()) if name in paired else classes
            cells = [_fitted(name, fit, classes, rows, k) for k in range(places)]
            vectors[name].append(torch.stack(cells))
    origin = model_fingerprint(model), short_label(model)
    return {
        name: Candidates(torch.stack(some), torch.stack(references), METHODS.get(name, name), *origin)
        for name, some in vectors.items()
    }


METHODS = {"dim": "difference-in-means"}
"""Names of the method that differ from the generator's."""


def generator(name: str) -> Fit:
    """The function of a generator.

    Example:
        >>> generator("pca").__name__
        'principal_component'
    """
    fit: Fit = resolve_name(f"cosmic_tl.directions.{GENERATORS[name]}")
    return fit


def oriented(
    vector: Float64[Tensor, " d_model"], difference: Float64[Tensor, " d_model"]
) -> Float64[Tensor, " d_model"]:
    """`(r·v̂) v̂`: a vector with the sign of the classes, and as long as they are apart along it.

    Example:
        >>> oriented(torch.tensor([-3.0, -4.0]).double(), torch.tensor([5.0, 0.0]).double())
        tensor([1.8000, 2.4000], dtype=torch.float64)
    """
    unit = vector / vector.norm()
    found: Tensor = (difference @ unit) * unit
    return found


def _fitted(
    name: str, fit: Fit, classes: tuple[Tensor, Tensor], rows: tuple[Tensor, Tensor], position: int
) -> Float64[Tensor, " d_model"]:
    means = [side[:, position].mean(0) for side in classes]
    difference = means[0] - means[1]
    if not difference.norm() > SAME * means[1].norm():
        return torch.zeros_like(difference)
    try:
        vector = torch.as_tensor(fit(rows[0][:, position], rows[1][:, position])).double()
    except (ValueError, RuntimeError) as error:  # such as a singular matrix
        raise CosmicError(
            f"directions: {name} cannot be fitted to {len(rows[0])} + {len(rows[1])} prompts ({first_line(error)}); give more"
        ) from error
    if vector.shape != difference.shape or not vector.isfinite().all() or not vector.any():
        raise CosmicError(
            f"directions: {name} gives {_named(vector)}, expected a finite vector of {len(difference)} numbers that is not zero"
        )
    return oriented(vector, difference)


def _named(vector: Tensor) -> str:
    return (
        f"shape {tuple(vector.shape)}" if vector.isfinite().all() and vector.any() else "zeros, NaN or infinite numbers"
    )


def _pairs(prompts: Prompts, name: str) -> tuple[tuple[str, str], ...]:
    pairs = prompts.contrast.get("train", ()) if isinstance(prompts, ContrastSet) else ()
    if not pairs:
        raise CosmicError(
            f"directions: {name} needs pairs that differ in the concept alone, and these prompts have none; give a set with "
            '"contrast": {"train": …}, or leave it out'
        )
    return pairs
