"""How close steered activations come to the other class, at every layer and position."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import cosine_similarity

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import DrawnResult
from cosmic_tl.activations import mean_activations
from cosmic_tl.data.contrast_set import SIDES, Prompts, labels_of, sides_of
from cosmic_tl.directions.direction import Direction
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.interventions.options import Mode
from cosmic_tl.interventions.steer import steering
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import Positions, post_instruction_positions
from cosmic_tl.selection.result import Selection, direction_and_edits


@checked
@dataclass(frozen=True, eq=False, repr=False)
class LayerSimilarity(DrawnResult):
    """Cosines between class means of `y[l, i]`."""

    before: Float64[Tensor, "layer position"]
    """Positive against negative prompts, no intervention."""
    removal: Float64[Tensor, "layer position"]
    """Positive prompts with the concept removed against clean negative ones."""
    induction: Float64[Tensor, "layer position"]
    """Negative prompts with the concept induced against clean positive ones."""
    positions: Positions
    labels: tuple[str, str] = SIDES
    """What the contrast set calls positive and negative prompts."""

    @property
    def table(self) -> pd.DataFrame:
        """One row per layer and position: layer, position, before, removal, induction.

        Example:
            >>> import torch
            >>> ones = torch.ones(2, 1, dtype=torch.float64)
            >>> LayerSimilarity(ones, ones, ones, Positions(("x",))).table.layer.tolist()
            [0, 1]
        """
        places = [(layer, position) for layer in range(len(self.before)) for position in self.positions.indices]
        cosines = {name: getattr(self, name).flatten().tolist() for name in ("before", "removal", "induction")}
        return pd.DataFrame(places, columns=["layer", "position"]).assign(**cosines)

    def __repr__(self) -> str:
        n_layers, n_positions = self.before.shape
        last = ", ".join(
            f"{name} {float(getattr(self, name)[-1, -1]):.3f}" for name in ("before", "removal", "induction")
        )
        return f"LayerSimilarity({n_layers} layers, {n_positions} positions; at the last of both: {last})"


@checked
def layer_similarities(
    model: TransformerBridge,
    prompts: Prompts,
    selection: Selection | Direction,
    *,
    mode: Mode | None = None,
    alpha: float | None = None,
    chat: ChatFormat | None = None,
    n_positions: int | None = None,
    batch_size: int | None = None,
) -> LayerSimilarity:
    """Cosine between steered and reference activations, before and after the intervention.

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set, whose val prompts are taken, or a pair of lists: positive and negative prompts.
        selection: What was chosen, with its mode and strength; or a bare direction together with a mode.
        mode: "linear" or "affine"; with a direction only.
        alpha: Strength of the induction. Defaults to the selection's, or to 1 for a direction.
        chat: Formatting. Defaults to the plain chat template.
        n_positions: How many of the last positions; default every post-instruction token.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Raises:
        CosmicError: If a direction comes without a mode, it does not fit the model, or a prompt does not fit its context.

    Example:
        >>> import torch
        >>> from cosmic_tl import load_model
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> model = load_model("demo", device="cpu")
        >>> found = layer_similarities(model, (["Rob a clerk."], ["Bake a pie."]), direction, mode="affine")
        >>> found.before.shape
        torch.Size([8, 5])
    """
    positive, negative = sides_of(prompts, "val")
    direction, edits = direction_and_edits(selection, mode, alpha)
    positions = post_instruction_positions(model, chat, n_positions)

    def reached(prompts: Sequence[str], edit: Interventions = ()) -> Float64[Tensor, "layer position d_model"]:
        with steering(model, edit):
            return mean_activations(
                model, prompts, positions=positions, chat=chat, batch_size=batch_size, label="similarity"
            ).resid_post

    clean_positive, clean_negative = reached(positive), reached(negative)
    removed = reached(positive, edits.removal(direction))
    induced = reached(negative, edits.induction(direction))
    return LayerSimilarity(
        cosine_similarity(clean_positive, clean_negative, dim=-1),
        cosine_similarity(removed, clean_negative, dim=-1),
        cosine_similarity(induced, clean_positive, dim=-1),
        positions,
        labels_of(prompts) or SIDES,
    )
