"""Score directions of any origin as COSMIC scores its own candidates."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from cosmic_tl._util.border import checked
from cosmic_tl.activations import class_means
from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.fingerprint import check_origin
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import post_instruction_positions
from cosmic_tl.selection.cosmic import select_cosmic
from cosmic_tl.selection.options import CosmicOptions
from cosmic_tl.selection.result import Selection


@checked
def score_directions(
    model: TransformerBridge,
    prompts: ContrastSet,
    directions: Mapping[str, Any],
    options: CosmicOptions | None = None,
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> Selection:
    """Score directions of your own as COSMIC would, and choose among them.

    A `Direction` is scored at its own layer. A bare vector is scored at every layer, with the negative training prompts' mean
    at the last token as its reference; its length is what α = 1 adds.

    Args:
        model: A `TransformerBridge`.
        prompts: The concept's contrast set: val scores the directions; train gives evaluation layers and references.
        directions: Name to a `Direction`, or to a vector of `d_model` numbers (tensor, array or list).
        options: Thresholds and numbers. Default the paper's; the rule on position −1 plays no part.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows (prompts times directions) per forward pass. Default: by the available memory.

    Returns:
        A selection with one column per direction; its table has their names in the column `name`. A vector that is tried at or
        above the evaluation layers changes nothing that COSMIC compares (`CosmicOptions.evaluation_layers`).

    Raises:
        NoCandidateError: If the filters leave nothing.
        CosmicError: If there is no direction, or one does not fit the model.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> options = CosmicOptions(n_train=8, n_val=4, max_kl=50.0)
        >>> found = score_directions(model, prompts, {"mine": torch.ones(128), "other": [0.5] * 128}, options)
        >>> found.table.name.unique().tolist(), len(found.table)
        (['mine', 'other'], 16)
    """
    options = options or CosmicOptions()
    if not directions:
        raise CosmicError("directions: found none; give at least one, by name")
    n_layers, width = int(model.cfg.n_layers), int(model.cfg.d_model)
    sides = prompts.sides("train", options.n_train)
    last = post_instruction_positions(model, chat, 1)
    means = class_means(model, sides, positions=last, chat=chat, batch_size=batch_size)
    vectors, references = {}, {}
    for column, given in enumerate(directions.values(), -len(directions)):
        if isinstance(given, Direction):
            check_origin(model, given.fingerprint, given.model)
            vectors[given.layer, column] = given.vector
            if given.reference is not None:
                references[given.layer, column] = given.reference
            continue
        vector = torch.as_tensor(given)
        if vector.shape != (width,):
            raise CosmicError(f"directions: a vector has shape {tuple(vector.shape)}, expected ({width},)")
        for layer in range(n_layers):
            vectors[layer, column], references[layer, column] = vector, means[1].resid_pre[layer, -1]
    candidates = Candidates.from_vectors(vectors, references=references, n_layers=n_layers, names=tuple(directions))
    own = replace(options, last_position_rule=False, n_positions=None)
    found = select_cosmic(model, prompts, own, candidates=candidates, chat=chat, batch_size=batch_size, means=means)
    names = [candidates.names[column] for column in found.table.position]
    return replace(found, table=found.table.assign(name=names)[["name", *found.table]])
