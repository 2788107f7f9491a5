"""A conversation token by token: how much of a direction each token carries at each layer, without and with edits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.coloured import Scale, Token, as_coloured
from cosmic_tl._util.displays import as_html
from cosmic_tl._util.results import Result
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError
from cosmic_tl.experiments.cost import named_interventions
from cosmic_tl.experiments.text_cost import BASELINE
from cosmic_tl.generation.completions import answer_texts, new_tokens
from cosmic_tl.generation.sampling import Sampling, describe_generation
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.interventions.steer import intervention_hooks
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, opened_block, tokenize
from cosmic_tl.model.forward import read
from cosmic_tl.model.hooks import ScopedHook, Site, hooks_around, is_all_tokens
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import instruction_tokens
from cosmic_tl.selection.result import Selection

PROMPT, TEMPLATE, COMPLETION = "prompt", "template", "completion"
REACH = 1.0
"""From the centre of the colours to their ends. It is the same for every conversation, so that colours can be compared, and that
the first token, whose stream is often ten times as long as that of all others, does not take the colour from these."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Conversation(Result):
    """A prompt and what the model makes of it under each edit, with every token's projection on a direction."""

    table: pd.DataFrame
    """One row per condition, token and layer: condition ("baseline", or the name of the edits), index (of the token, from 0),
    token (its text), id, part ("prompt": the user's text; "template": all else before the answer, a system prompt too;
    "completion": the answer, with the token that ends it), layer, and projection."""
    prompt: str
    completions: Mapping[str, str]
    """What the model answers, by condition."""
    direction: Direction
    generation: Mapping[str, Any]
    """How completions were generated: `describe_generation`, and the seed."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that were read.

        Example:
            >>> table = pd.DataFrame({"layer": [3, 4, 3, 4]})
            >>> Conversation(table, "hi", {}, Direction(torch.ones(2), None, 3, -1), {}).layers
            (3, 4)
        """
        return tuple(map(int, sorted(self.table.layer.unique())))

    @property
    def layer(self) -> int:
        """The layer that texts and means are shown at: the direction's own, the first one above it that was read, or the last.

        Example:
            >>> table = pd.DataFrame({"layer": [2, 4, 5]})
            >>> Conversation(table, "hi", {}, Direction(torch.ones(2), None, 3, -1), {}).layer
            4
        """
        return next((layer for layer in self.layers if layer >= self.direction.layer), self.layers[-1])

    @property
    def scale(self) -> tuple[float, Mapping[str, float]]:
        """Halfway between the classes, and the projections that mean something, by name.

        Example:
            >>> Conversation(pd.DataFrame(), "hi", {}, Direction(torch.ones(2), torch.zeros(2), 3, -1), {}).scale
            (0.5, {'negative class': 0.0, 'positive class': 1.0})
        """
        if self.direction.reference is None:
            return 0.0, {"nothing": 0.0, "as much as α = 1 adds": 1.0}
        return 0.5, {"negative class": 0.0, "positive class": 1.0}

    def summary(self, layer: int | None = None) -> pd.DataFrame:
        """One row per condition: condition, tokens (of the completion), prompt and completion (mean projections of their tokens).

        Args:
            layer: Default the conversation's `layer`.

        Raises:
            CosmicError: If it was not read.

        Example:
            >>> rows = {"part": ["prompt", "completion"], "projection": [0.25, 0.5]}
            >>> table = pd.DataFrame({**rows, "condition": "baseline", "index": [0, 1], "layer": 3})
            >>> found = Conversation(table, "hi", {"baseline": "Hi."}, Direction(torch.ones(2), None, 3, -1), {})
            >>> found.summary().to_dict("records")
            [{'condition': 'baseline', 'tokens': 1, 'prompt': 0.25, 'completion': 0.5}]
        """
        rows = []
        for condition, some in self._at(self.layer if layer is None else layer).groupby("condition", sort=False):
            means = some.groupby("part").projection.mean()
            rows.append(
                {"condition": condition, "tokens": int((some.part == COMPLETION).sum())}
                | {part: round(float(means[part]), 6) + 0.0 for part in (PROMPT, COMPLETION) if part in means}  # no −0
            )
        return pd.DataFrame(rows)

    def html(self, layer: int | None = None) -> str:
        """The texts side by side, each token on the colour of its projection; what a notebook shows.

        Args:
            layer: As for `summary`.

        Raises:
            CosmicError: If it was not read.

        Example:
            >>> rows = {"part": ["prompt", "completion"], "token": ["<", ">"], "projection": [0.25, 0.5]}
            >>> table = pd.DataFrame({**rows, "condition": "baseline", "index": [0, 1], "layer": 3})
            >>> found = Conversation(table, "hi", {"baseline": "Hi."}, Direction(torch.ones(2), None, 3, -1), {})
            >>> "&lt;</span>" in found.html()
            True
        """
        layer = self.layer if layer is None else layer
        table = self._at(layer)
        centre, marks = self.scale
        columns = {
            str(condition): {
                name: [
                    Token(str(token), float(value), part != TEMPLATE)
                    for token, value, part in zip(rows.token, rows.projection, rows.part, strict=True)
                ]
                for name, rows in (
                    (PROMPT, some[some.part != COMPLETION]),
                    (COMPLETION, some[some.part == COMPLETION]),
                )
            }
            for condition, some in table.groupby("condition", sort=False)
        }
        low, high = centre - REACH, centre + REACH
        legend = {f"{value:g}: {name}": value for name, value in marks.items()}
        legend = {f"{low:g} or less": low, **legend, f"{high:g} or more": high}
        return as_coloured(columns, Scale(centre, REACH), legend, f"Projection at layer {layer}")

    def _at(self, layer: int) -> pd.DataFrame:
        """One layer's rows."""
        if layer not in self.layers:
            raise CosmicError(f"layer: found {layer}, and the layers read are {', '.join(map(str, self.layers))}")
        return self.table[self.table.layer == layer]

    def _lines(self) -> list[str]:
        head = f"Conversation({len(self.completions)} conditions, {len(self.layers)} layers, {self.direction})"
        return [head, f"  prompt: {self.prompt}", *(f"  {name}: {text}" for name, text in self.completions.items())]

    def _shown(self) -> pd.DataFrame:
        return self.summary()

    def _repr_html_(self) -> str:
        return self.html() + as_html([], self.summary())


@checked
def follow_conversation(
    model: TransformerBridge,
    prompt: str,
    selection: Selection | Direction,
    interventions: Interventions | Mapping[str, Interventions] | None = None,
    *,
    layers: Sequence[int] | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    sampling: Sampling | None = None,
    chat: ChatFormat | None = None,
    seed: int = 0,
) -> Conversation:
    """Let the model answer a prompt without and with edits, and read the direction off every token at every layer.

    The projection is `(x[l, i] − ν)·r̂ / ‖r‖`, with the direction's own `r` and reference `ν` at all layers: where the direction
    was found, 0 is the mean of the negative class and 1 that of the positive class. Elsewhere it is a length in the same unit.
    For a direction without a reference it is `x[l, i]·r̂ / ‖r‖`: 0 means that there is nothing of the direction.

    Under an edit, `x[l, i]` is what the block reads: the stream at its input (`hook_resid_pre`) after all edits there. So an
    affine edit gives every token that it covers one projection at its layer, and directional ablation one at all layers. What
    the model makes of an affine edit or an addition stands at later layers, and in the completion.

    Each token is read as it was when it was generated, with one pass over prompt and completion under the same edits. Token
    scopes hold: for "prompt" and "completion" the answer begins where it was generated. The last token of an answer was written
    and never read by the model; it is read here all the same.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompt: One instruction.
        selection: What was chosen, or a bare direction, of any layer.
        interventions: Edits by the name to show, beside the baseline, which is always there. Default, with a selection: its own
            "removal" and "induction"; with a bare direction none.
        layers: Which layers to read. Default all.
        max_new_tokens: Maximum number of new tokens per answer. Default 64.
        temperature: 0 (default) is greedy.
        sampling: Top-k, top-p and repetition penalty. Defaults to none of them.
        chat: Formatting. Defaults to the plain chat template.
        seed: Seed for sampling, the same for every condition. Default 0.

    Raises:
        CosmicError: As `complete`; if there is no such layer, the direction does not fit the model, an edit is called
            "baseline", or an edit of some tokens alone acts on the model from outside.

    Example:
        >>> from cosmic_tl import Ablation, load_model
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> model, edits = load_model("demo", device="cpu"), {"removal": Ablation(direction)}
        >>> found = follow_conversation(model, "Bake a pie.", direction, edits, max_new_tokens=4)
        >>> found.summary().tokens.tolist(), found.table.part.unique().tolist()
        ([4, 4], ['template', 'prompt', 'completion'])
    """
    direction = selection.direction if isinstance(selection, Selection) else selection
    direction.check(model)
    n_layers = int(model.cfg.n_layers)
    read_at = tuple(range(n_layers)) if layers is None else tuple(sorted(set(layers)))
    if not read_at or not 0 <= read_at[0] <= read_at[-1] < n_layers:
        raise CosmicError(f"layers: found {read_at}; give some of 0 to {n_layers - 1}")
    if interventions is not None:
        named = named_interventions(interventions)
    elif isinstance(selection, Selection):
        named = {"removal": selection.removal(), "induction": selection.induction()}
    else:
        named = {}
    conditions: dict[str, Interventions] = {BASELINE: (), **named}
    (row,) = tokenize(model, [prompt], chat, max_new_tokens)
    hooks = {name: intervention_hooks(model, edits, prompt_length=len(row)) for name, edits in conditions.items()}
    if any(isinstance(hook, ScopedHook) and not is_all_tokens(hook.tokens) for hook in hooks_around(model)):
        raise CosmicError(
            "interventions: an edit of some tokens alone acts on the model already, and does not know where the answer begins; "
            "leave its context, and pass it here"
        )
    own = instruction_tokens(model, row, chat)
    parts = [PROMPT if i in own else TEMPLATE for i in range(len(row))]
    shift = 0.0 if direction.reference is None else float(direction.reference.double() @ direction.unit.double())
    sites: list[tuple[int, Site]] = [(layer, "hook_resid_pre") for layer in read_at]
    opened, completions, frames = opened_block(model, chat), {}, []
    for name, edits in conditions.items():
        (answer,) = new_tokens(
            model,
            [row],
            edits,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            label=name,
            sampling=sampling,
        )
        completions[name] = opened + answer_texts(model, [answer])[0]
        ids = [*row, *answer]
        found = read(model, next(batches(model, [ids], 1)), sites, n_positions=len(ids), hooks=hooks[name])
        stream = torch.stack([found[site][0].cpu().double() for site in sites])
        along = (stream @ direction.unit.double() - shift) / direction.norm
        frames.append(
            _frame(name, ids, token_texts(model.tokenizer, ids), [*parts, *[COMPLETION] * len(answer)], read_at, along)
        )
    generation = describe_generation(model, max_new_tokens, temperature, sampling) | {"seed": seed}
    return Conversation(pd.concat(frames, ignore_index=True), prompt, completions, direction, generation)


def _frame(
    condition: str,
    ids: Sequence[int],
    texts: Sequence[str],
    parts: Sequence[str],
    layers: Sequence[int],
    projections: Float64[Tensor, "layer token"],
) -> pd.DataFrame:
    tokens = pd.DataFrame({"condition": condition, "index": range(len(ids)), "token": texts, "id": ids, "part": parts})
    rows = tokens.loc[tokens.index.repeat(len(layers))].reset_index(drop=True)
    return rows.assign(layer=list(layers) * len(ids), projection=projections.T.flatten().numpy())


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token behind the one before it: of a token alone some tokenizers leave out the space at its start.

    Example:
        >>> from cosmic_tl import load_model
        >>> tokenizer = load_model("demo", device="cpu").tokenizer
        >>> token_texts(tokenizer, tokenizer("a bank clerk")["input_ids"])
        ['a', ' bank', ' clerk']
    """
    alone: list[str] = [tokenizer.decode([token]) for token in ids]
    texts = alone[:1]
    for before, here in pairwise(range(len(ids))):
        both: str = tokenizer.decode([ids[before], ids[here]])
        texts.append(both[len(alone[before]) :] if both.startswith(alone[before]) else alone[here])
    return texts
