"""Whether several directions do more than one: COSMIC's scores against the rank of a subspace, beside random subspaces."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl._util.results import Result
from cosmic_tl.data.contrast_set import Prompts, sides_of
from cosmic_tl.directions.subspace import Subspace
from cosmic_tl.engine import Outcome, Reading, intervened
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.interventions.options import Mode, as_mode
from cosmic_tl.interventions.subspace_edits import SubspaceAblation, SubspaceEdit
from cosmic_tl.metrics.divergence import kl_divergence
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.load import TransformerBridge

PLACEBOS = 5
"""Random subspaces per rank."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Ranks(Result):
    """Scores of a subspace's first directions, and of random subspaces of equal rank."""

    table: pd.DataFrame
    """One row per rank and subspace: rank, kind ("subspace" or "random"), seed (−1 for the subspace itself), s_comply, s_refuse
    (NaN in linear mode, where induction is by one direction), and kl (of removal on negative prompts, in nats)."""
    clean: float
    """Cosine between the classes with no intervention, the zero point of both scores."""
    mode: Mode
    method: str
    """How the subspace was made."""

    def _lines(self) -> list[str]:
        return [f"Ranks({self.method}, {self.mode} mode; no intervention {self.clean:.3f})"]


@checked
def measure_ranks(
    model: TransformerBridge,
    prompts: Prompts,
    subspace: Subspace,
    evaluation_layers: Sequence[int],
    *,
    ranks: Sequence[int] | None = None,
    mode: Mode = "affine",
    n_val: int | None = None,
    n_placebos: int = PLACEBOS,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> Ranks:
    """COSMIC's scores and the KL of removal against the number of directions, with random subspaces of equal rank.

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set, whose validation prompts are taken, or a pair of lists: positive and negative prompts.
        subspace: Whose first directions are taken, for each rank.
        evaluation_layers: Where activations are compared, such as a selection's.
        ranks: Numbers of directions. Default all up to the subspace's rank.
        mode: "affine" (default): removal and induction by `SubspaceEdit` at its layer. "linear": removal by `SubspaceAblation`.
        n_val: Validation prompts per side, of a contrast set. Default all.
        n_placebos: Random subspaces per rank. Default 5.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows (prompts times edits) per forward pass. Default: by available memory.

    Raises:
        CosmicError: If a rank or a layer does not exist, or the subspace does not fit the model.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> from cosmic_tl.directions.subspace import class_subspace
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> plane = class_subspace(model, prompts, 4, k=2, n_train=8)
        >>> measure_ranks(model, prompts, plane, (6,), n_val=4, n_placebos=1).table["rank"].tolist()
        [1, 1, 2, 2]
    """
    mode = as_mode(mode)
    check_count("n_placebos", n_placebos)
    layers = sorted(set(evaluation_layers))
    if not layers or not 0 <= layers[0] <= layers[-1] < int(model.cfg.n_layers):
        raise CosmicError(f"evaluation_layers: found {layers}; give some of 0 to {int(model.cfg.n_layers) - 1}")
    wanted = range(1, subspace.rank + 1) if ranks is None else ranks
    places = [(k, seed) for k in wanted for seed in (-1, *range(n_placebos))]
    some = [subspace.first(k) if seed < 0 else subspace.first(k).random(seed) for k, seed in places]
    removals: list[Interventions] = [
        SubspaceEdit(one, 0.0) if mode == "affine" else SubspaceAblation(one) for one in some
    ]
    inductions: list[Interventions] = [SubspaceEdit(one, 1.0) for one in some] if mode == "affine" else []
    positive, negative = (tokenize(model, side, chat) for side in sides_of(prompts, "val", n_val))

    def mean(outcome: Outcome) -> Tensor:
        return torch.stack([outcome.resid_post[layer][:, -1].cpu().double() for layer in layers]).mean(0)

    def logits(outcome: Outcome) -> Tensor:
        assert outcome.logits is not None
        return outcome.logits.cpu()

    reading, next_token = Reading(tuple(layers)), Reading(logits=True)
    with track(2 * len(removals) + len(inductions), "ranks") as advance:

        def means(rows: Sequence[Sequence[int]], edits: Sequence[Interventions]) -> dict[int, Tensor]:
            found = {}
            for i, values in intervened(model, rows, edits, reading, mean, batch_size=batch_size):
                found[i] = values.mean(0)
                advance(1)
            return found

        (target_pos,), (target_neg,) = (
            [values.mean(0) for _, values in intervened(model, rows, [()], reading, mean, batch_size=batch_size)]
            for rows in (positive, negative)
        )
        removed, induced = means(positive, removals), means(negative, inductions)
        ((_, clean),) = intervened(model, negative, [()], next_token, logits, batch_size=batch_size)

        def divergence(outcome: Outcome) -> Tensor:
            return kl_divergence(clean[list(outcome.rows)], logits(outcome))

        moved = {}
        for i, values in intervened(model, negative, removals, next_token, divergence, batch_size=batch_size):
            moved[i] = float(values.mean())
            advance(1)
    rows = [
        {
            "rank": k,
            "kind": "subspace" if seed < 0 else "random",
            "seed": seed,
            "s_comply": float(cosine_similarity(removed[i], target_neg, dim=0)),
            "s_refuse": float(cosine_similarity(induced[i], target_pos, dim=0)) if induced else float("nan"),
            "kl": moved[i],
        }
        for i, (k, seed) in enumerate(places)
    ]
    return Ranks(pd.DataFrame(rows), float(cosine_similarity(target_pos, target_neg, dim=0)), mode, subspace.method)
