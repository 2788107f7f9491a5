"""How much of a direction each token of a prompt carries, layer by layer."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import cosine_similarity

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import DrawnResult
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import one_of
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.interventions.steer import intervention_hooks
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.forward import read
from cosmic_tl.model.hooks import Site
from cosmic_tl.model.load import TransformerBridge

Measure = Literal["projection", "cosine"]


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Projection(DrawnResult):
    """One prompt's residual stream along a direction."""

    values: Float64[Tensor, "layer token"]
    """`y[l, i]·r̂` in activation units, or its cosine with `r̂`."""
    tokens: tuple[str, ...]
    """The prompt's tokens as text, including the template."""
    measure: Measure
    direction: Direction

    @property
    def table(self) -> pd.DataFrame:
        """One row per layer and token: layer, index (from 0), token, value.

        Example:
            >>> direction = Direction(torch.ones(2), torch.zeros(2), layer=0, position=-1)
            >>> values = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
            >>> Projection(values, ("a", "b"), "projection", direction).table.value.tolist()
            [1.0, 2.0]
        """
        n_layers, n_tokens = self.values.shape
        return pd.DataFrame(
            {
                "layer": [layer for layer in range(n_layers) for _ in range(n_tokens)],
                "index": list(range(n_tokens)) * n_layers,
                "token": list(self.tokens) * n_layers,
                "value": self.values.flatten().tolist(),
            }
        )

    def __repr__(self) -> str:
        n_layers, n_tokens = self.values.shape
        return f"Projection({self.measure} on {self.direction}, {n_layers} layers, {n_tokens} tokens)"


@checked
def project(
    model: TransformerBridge,
    prompt: str,
    direction: Direction,
    *,
    chat: ChatFormat | None = None,
    interventions: Interventions = (),
    measure: Measure = "projection",
) -> Projection:
    """A prompt's stream along a direction at every layer and token, with or without edits.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompt: One instruction.
        direction: The direction, of any layer, since all layers share one stream.
        chat: Formatting. Defaults to the plain chat template.
        interventions: Edits to apply. Defaults to none.
        measure: "projection" (default), `y[l, i]·r̂`, which grows with the stream; or "cosine", which does not.

    Raises:
        CosmicError: If the measure is unknown, the prompt is blank or too long, or the direction does not fit the model.

    Example:
        >>> from cosmic_tl import load_model
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> found = project(load_model("demo", device="cpu"), "Rob a clerk.", direction)
        >>> found.values.shape, found.tokens[-2:]
        (torch.Size([8, 14]), ('assistant', '\\n'))
    """
    one_of("measure", measure, get_args(Measure))
    direction.check(model)
    rows = tokenize(model, [prompt], chat)
    sites: list[tuple[int, Site]] = [(layer, "hook_resid_post") for layer in range(int(model.cfg.n_layers))]
    hooks = intervention_hooks(model, interventions)
    found = read(model, next(batches(model, rows, 1)), sites, n_positions=len(rows[0]), hooks=hooks)
    stream = torch.stack([found[site][0].cpu() for site in sites]).double()
    values = along(stream, direction, measure)
    tokenizer: Any = model.tokenizer
    return Projection(values, tuple(tokenizer.decode([token]) for token in rows[0]), measure, direction)


def along(
    stream: Float64[Tensor, "*place d_model"], direction: Direction, measure: Measure
) -> Float64[Tensor, "*place"]:
    """How much of a direction activations carry.

    Args:
        stream: Activations.
        direction: The direction.
        measure: "projection", `x·r̂`; or "cosine".

    Example:
        >>> direction = Direction(torch.ones(4), None, layer=3, position=-1)
        >>> [float(along(torch.ones(4).double(), direction, measure)) for measure in ("projection", "cosine")]
        [2.0, 1.0]
    """
    unit = direction.unit.double()
    found: Tensor = stream @ unit if measure == "projection" else cosine_similarity(stream, unit, dim=-1)
    return found
