"""Both classes in the plane in which they vary most, layer by layer, without an edit and under edits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import DrawnResult
from cosmic_tl.activations import cache_activations
from cosmic_tl.data.contrast_set import SIDES, Prompts, labels_of, sides_of
from cosmic_tl.engine import Outcome, Reading, intervened
from cosmic_tl.errors import CosmicError
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import post_instruction_positions

NO_EDIT = "none"


@checked
@dataclass(frozen=True, eq=False, repr=False)
class ClassPca(DrawnResult):
    """Two principal components of both classes at the last position, one plane per layer."""

    points: pd.DataFrame
    """One row per edit, layer and prompt: edit ("none" is the unedited model; an α is written "α = 0"), layer, side
    ("positive" or "negative"), prompt, pc1, pc2."""
    explained: Float64[Tensor, "layer component"]
    """Share of the variance of the unedited classes that each of the two components explains."""
    labels: tuple[str, str] = SIDES
    """What the contrast set calls positive and negative prompts."""

    @property
    def edits(self) -> tuple[str, ...]:
        """Names of the edits, in order, "none" first.

        Example:
            >>> row = {"edit": "none", "layer": 0, "side": "positive", "prompt": "hi", "pc1": 0.0, "pc2": 0.0}
            >>> ClassPca(pd.DataFrame([row]), torch.ones(1, 2, dtype=torch.float64)).edits
            ('none',)
        """
        return tuple(dict.fromkeys(self.points.edit))

    @property
    def table(self) -> pd.DataFrame:
        """Distance between the class means along the first component, in pooled standard deviations.

        Returns:
            One row per edit and layer: edit, layer, separation.

        Example:
            >>> row = {"edit": "none", "layer": 0, "prompt": "hi", "pc2": 0.0}
            >>> sides = [("positive", 3.0), ("positive", 5.0), ("negative", -3.0), ("negative", -5.0)]
            >>> points = pd.DataFrame([{**row, "side": side, "pc1": value} for side, value in sides])
            >>> ClassPca(points, torch.ones(1, 2, dtype=torch.float64)).table.separation.round(2).tolist()
            [5.66]
        """
        rows = []
        for (edit, layer), some in self.points.groupby(["edit", "layer"], sort=False):
            sides = some.groupby("side").pc1
            mean, pooled = sides.mean(), (sides.var().mean()) ** 0.5
            rows.append({"edit": edit, "layer": layer, "separation": (mean["positive"] - mean["negative"]) / pooled})
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        n = self.points.groupby("side").prompt.nunique()
        sides = " and ".join(f"{n.get(side, 0)} {label}" for side, label in zip(SIDES, self.labels, strict=True))
        return f"ClassPca({len(self.explained)} layers, {sides} prompts, edits {', '.join(self.edits)})"


@checked
def pca_of_classes(
    model: TransformerBridge,
    prompts: Prompts,
    edits: Mapping[Any, Interventions] | None = None,
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> ClassPca:
    """Principal components of `y[l, -1]` over both classes, with the classes under edits in the same plane.

    Each layer's components are fitted once, on the unedited model, and used for every edit, so that points of one layer
    are comparable. Signs are chosen so that the positive class has the higher mean on the first component, and the
    second component agrees with that of the previous layer.

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set, whose test prompts are taken, or a pair of lists: positive and negative prompts.
        edits: Interventions by their α or another name, such as `{0.0: AffineEdit(d, 0.0), 1.0: AffineEdit(d, 1.0)}`.
            Applied to both classes, on all tokens. Defaults to none.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Raises:
        CosmicError: If a side has no prompts, there are fewer than three, an edit is called "none", or as `intervened`.

    Example:
        >>> from cosmic_tl import load_model
        >>> harmful, harmless = ["Rob a clerk.", "Poison a dog."], ["Bake a pie.", "Paint a fence."]
        >>> pca_of_classes(load_model("demo", device="cpu"), (harmful, harmless))
        ClassPca(8 layers, 2 positive and 2 negative prompts, edits none)
    """
    positive, negative = sides_of(prompts, "test")
    asked = [*positive, *negative]
    if len(asked) < 3:
        raise CosmicError(f"prompts: found {len(asked)}, and a plane takes three; give more")
    last = post_instruction_positions(model, chat, 1)
    clean = cache_activations(model, asked, site="hook_resid_post", positions=last, chat=chat, batch_size=batch_size)[
        :, :, 0
    ].double()
    centre = clean.mean(0)
    components, explained = _fit(clean - centre, len(positive))

    def place(streams: Tensor) -> Tensor:
        return torch.einsum("pld,lcd->plc", streams - centre, components)

    def reduce(outcome: Outcome) -> Tensor:
        return place(torch.stack([outcome.resid_post[k][:, -1].cpu().double() for k in range(len(centre))], dim=1))

    named = {key if isinstance(key, str) else f"α = {key:g}": edit for key, edit in (edits or {}).items()}
    if NO_EDIT in named:
        raise CosmicError(f"edits: {NO_EDIT!r} stands for no edit; use another name")
    rows, reading = tokenize(model, asked, chat), Reading(tuple(range(len(centre))))
    edited = dict(intervened(model, rows, list(named.values()), reading, reduce, batch_size=batch_size))
    found = {NO_EDIT: place(clean)} | {name: edited[i] for i, name in enumerate(named)}
    tables = [_points(name, at, asked, len(positive)) for name, at in found.items()]
    return ClassPca(pd.concat(tables, ignore_index=True), explained, labels_of(prompts) or SIDES)


def _fit(
    centred: Float64[Tensor, "prompt layer d_model"], n_positive: int
) -> tuple[Float64[Tensor, "layer 2 d_model"], Float64[Tensor, "layer 2"]]:
    """Each layer's first two components, with their sign, and the share of variance that they explain."""
    _, singular, right = torch.linalg.svd(centred.transpose(0, 1), full_matrices=False)
    components = right[:, :2].clone()
    for layer, (first, second) in enumerate(components):
        if (centred[:n_positive, layer].mean(0) - centred[n_positive:, layer].mean(0)) @ first < 0:
            first *= -1
        # In the first layer the largest entry is positive.
        agreement = components[layer - 1, 1] @ second if layer else second[second.abs().argmax()]
        if agreement < 0:
            second *= -1
    return components, (singular**2)[:, :2] / (singular**2).sum(1, keepdim=True)


def _points(edit: str, at: Float64[Tensor, "prompt layer 2"], prompts: Sequence[str], n_positive: int) -> pd.DataFrame:
    n_prompts, n_layers, _ = at.shape
    side = [SIDES[0]] * n_positive + [SIDES[1]] * (n_prompts - n_positive)
    flat = at.transpose(0, 1).flatten(0, 1)
    return pd.DataFrame(
        {
            "edit": edit,
            "layer": [layer for layer in range(n_layers) for _ in range(n_prompts)],
            "side": side * n_layers,
            "prompt": list(prompts) * n_layers,
            "pc1": flat[:, 0].tolist(),
            "pc2": flat[:, 1].tolist(),
        }
    )
