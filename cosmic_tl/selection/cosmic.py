"""COSMIC: choose a direction by cosine similarity, without looking at outputs (Siu et al. 2025, section 3)."""

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Literal, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformer_lens.model_bridge import TransformerBridge

from cosmic_tl.activations import MeanActivations, mean_activations
from cosmic_tl.chat import ChatFormat, TokenBatch, batches, post_instruction_positions, tokenize
from cosmic_tl.directions.artifact import Direction
from cosmic_tl.directions.difference_in_means import difference_in_means
from cosmic_tl.errors import CosmicError
from cosmic_tl.forward import Hook, next_token_logits, read
from cosmic_tl.interventions import Ablation, Addition, AffineEdit, Intervention, intervention_hooks
from cosmic_tl.progress import track
from cosmic_tl.prompts import ContrastSet
from cosmic_tl.selection.table import Filter, Selection, apply_filters, choose, explain

Mode = Literal["linear", "affine"]


class Scores(NamedTuple):
    """What one candidate scored."""

    s_comply: float
    s_refuse: float
    kl: float


@dataclass(frozen=True)
class CosmicOptions:
    """Settings of the selection; the defaults are the paper's."""

    mode: Mode = "affine"
    """"linear": remove by directional ablation, induce by addition. "affine": both by ACE at the source layer."""
    alpha: float = 1.0
    """Strength of the induction."""
    evaluation_layers: tuple[int, ...] | None = None
    """Layers whose activations are compared; None ranks them by similarity of the classes."""
    evaluation_share: float = 0.1
    """Share of the layers that the ranking keeps, at least one."""
    exclude_first_half: bool = False
    """Rank only the second half of the layers (for weakly aligned models)."""
    max_kl: float = 0.1
    """Most that removal may move the next-token distribution on negative prompts, in nats."""
    max_layer_share: float = 0.8
    """Source layers at or above this share of the depth are dropped."""
    last_position_rule: bool = True
    """At position −1 drop layers later than both medians of the other positions' best layers."""
    n_positions: int | None = None
    """How many of the last positions; None is every post-instruction token."""
    n_train: int = 180
    """Training prompts a side."""
    n_val: int = 100
    """Validation prompts a side."""

    def __post_init__(self) -> None:
        if self.mode not in ("linear", "affine"):
            raise CosmicError(f"mode: unknown {self.mode!r}; use linear or affine")
        if not isfinite(self.alpha):
            raise CosmicError(f"alpha: expected a finite number, found {self.alpha}; pass a float")
        for name in ("evaluation_share", "max_layer_share"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise CosmicError(f"{name}: expected a share above 0 and at most 1, found {value}")
        if not self.max_kl > 0:
            raise CosmicError(f"max_kl: expected a positive number, found {self.max_kl}")


def removal(direction: Direction, mode: Mode) -> Intervention:
    """The intervention that takes the concept out.

    Example:
        >>> type(removal(Direction(torch.ones(2), torch.ones(2), 0, -1), "linear")).__name__
        'Ablation'
    """
    return Ablation(direction) if mode == "linear" else AffineEdit(direction, alpha=0.0)


def induction(direction: Direction, mode: Mode, alpha: float = 1.0) -> Intervention:
    """The intervention that puts the concept in.

    Example:
        >>> type(induction(Direction(torch.ones(2), torch.ones(2), 0, -1), "affine")).__name__
        'AffineEdit'
    """
    return Addition(direction, alpha) if mode == "linear" else AffineEdit(direction, alpha)


def layer_similarity(positive: MeanActivations, negative: MeanActivations) -> Float64[Tensor, " layer"]:
    """Cosine between the classes' mean `y[l, -1]`, per layer.

    Example:
        >>> from cosmic_tl import load_model
        >>> means = mean_activations(load_model("demo", device="cpu"), ["hi"])
        >>> layer_similarity(means, means).round(decimals=6).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    return cosine_similarity(positive.resid_post[:, -1], negative.resid_post[:, -1], dim=-1)


def evaluation_layers(
    similarity: Float[Tensor, " layer"] | Float64[Tensor, " layer"],
    share: float = 0.1,
    exclude_first_half: bool = False,
) -> tuple[int, ...]:
    """The layers where the classes differ most: the lowest `max(1, floor(share · n_layers))` similarities.

    Args:
        similarity: From `layer_similarity`.
        share: Of the layers to keep. Default 0.1.
        exclude_first_half: Rank only the second half of the layers.

    Example:
        >>> evaluation_layers(torch.tensor([0.9, 0.2, 0.5, 0.4]), share=0.5)
        (1, 3)
        >>> evaluation_layers(torch.tensor([0.9, 0.2, 0.5, 0.4]), exclude_first_half=True)
        (3,)
    """
    n_layers = len(similarity)
    first = n_layers // 2 if exclude_first_half else 0
    ranked = sorted(range(first, n_layers), key=lambda layer: (float(similarity[layer]), layer))
    return tuple(sorted(ranked[: max(1, int(share * n_layers + 1e-9))]))


def _mean_last(
    model: TransformerBridge, prompts: Sequence[TokenBatch], layers: Sequence[int], hooks: Sequence[Hook] = ()
) -> Float64[Tensor, " d_model"]:
    """Mean of `y[l, -1]` over prompts and layers."""
    total = torch.zeros(int(model.cfg.d_model), dtype=torch.float64)
    for batch in prompts:
        found = read(model, batch, [(layer, "hook_resid_post") for layer in layers], hooks=hooks)
        total += sum(activation.cpu().double().sum((0, 1)) for activation in found.values())
    return total / (len(layers) * sum(len(batch.rows) for batch in prompts))


def kl_divergence(
    p: Float[Tensor, "batch vocab"], q: Float[Tensor, "batch vocab"], eps: float = 1e-6
) -> Float64[Tensor, " batch"]:
    """`Σ p·(log(p + ε) − log(q + ε))` between the distributions of two sets of logits, in float64.

    Example:
        >>> kl_divergence(torch.zeros(1, 4), torch.zeros(1, 4)).tolist()
        [0.0]
    """
    p, q = p.double().softmax(-1), q.double().softmax(-1)
    return (p * ((p + eps).log() - (q + eps).log())).sum(-1)


def _score(
    model: TransformerBridge,
    direction: Direction,
    options: CosmicOptions,
    layers: Sequence[int],
    data: "_Validation",
) -> Scores:
    """S_comply, S_refuse and KL of one candidate."""

    def reached(prompts: Sequence[TokenBatch], edit: Intervention, clean: Tensor) -> Tensor:
        if not isinstance(edit, Ablation) and direction.layer > max(layers):
            return clean  # An edit above the last layer that is read changes nothing there.
        return _mean_last(model, prompts, layers, intervention_hooks(model, edit))

    remove = removal(direction, options.mode)
    comply = reached(data.positive, remove, data.target_positive)
    refuse = reached(data.negative, induction(direction, options.mode, options.alpha), data.target_negative)
    hooks = intervention_hooks(model, remove)
    kls = [
        kl_divergence(clean, next_token_logits(model, batch, hooks))
        for batch, clean in zip(data.negative, data.clean_logits, strict=True)
    ]
    return Scores(
        float(cosine_similarity(comply, data.target_negative, dim=0)),
        float(cosine_similarity(refuse, data.target_positive, dim=0)),
        float(torch.cat(kls).mean()),
    )


class _Validation(NamedTuple):
    """Validation prompts and what the clean model makes of them."""

    positive: list[TokenBatch]
    negative: list[TokenBatch]
    target_positive: Tensor
    target_negative: Tensor
    clean_logits: list[Tensor]


def _late_at_last_position(table: pd.DataFrame) -> "pd.Series[bool]":
    """The position −1 rule: later than both medians, over the other positions, of the best layer by each score."""
    others = table[table.position != -1]
    if others.empty:
        return pd.Series(False, index=table.index)
    late = table.position == -1
    for score in ("s_comply", "s_refuse"):
        valid = others[others[score].notna()]
        peaks = valid.loc[valid.groupby("position")[score].idxmax(), "layer"]
        late &= table.layer > (peaks.sort_values().iloc[(len(peaks) - 1) // 2] if len(peaks) else -1)
    return late


def _table(
    scores: dict[tuple[int, int], Scores], clean: float, n_layers: int, options: CosmicOptions
) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = [(position, layer, *found) for (layer, position), found in scores.items()]
    table = pd.DataFrame(rows, columns=["position", "layer", "s_comply", "s_refuse", "kl"])
    table = table.sort_values(["position", "layer"]).reset_index(drop=True)
    table.insert(4, "score", table.s_comply + table.s_refuse)
    for name in ("comply", "refuse"):
        table[f"share_{name}"] = (table[f"s_{name}"] - clean) / (1 - clean) if clean < 1 else nan
    filters = [
        Filter(
            "undefined",
            table[["score", "kl"]].isna().any(axis=1),
            "none: there the classes do not differ, or are not finite",
        ),
        Filter(
            "late layer", table.layer >= options.max_layer_share * n_layers, "max_layer_share=1 (--max-layer-share 1)"
        ),
        Filter("KL", table.kl > options.max_kl, "a higher max_kl (--max-kl)"),
    ]
    if options.last_position_rule:
        rule = "last_position_rule=False (--no-last-position-rule)"
        filters.append(Filter("position -1 rule", _late_at_last_position(table), rule))
    return apply_filters(table, filters)


def select_cosmic(
    model: TransformerBridge,
    prompts: ContrastSet,
    options: CosmicOptions | None = None,
    chat: ChatFormat | None = None,
    batch_size: int = 32,
    scores: MutableMapping[tuple[int, int], Scores] | None = None,
    means: tuple[MeanActivations, MeanActivations] | None = None,
) -> Selection:
    """Choose the direction whose removal and induction bring one class's activations closest to the other's.

    Args:
        model: Any bridge.
        prompts: The concept's contrast set; train makes the candidates, val scores them.
        options: Thresholds and numbers; default the paper's.
        chat: Formatting; default plain.
        batch_size: Prompts a forward pass. Default 32.
        scores: (layer, position) to scores already known; new ones are put in as they come, so that a mapping that
            writes them down makes the selection resumable.
        means: Training means of the positive and the negative side, if already taken.

    Raises:
        NoCandidateError: If the filters leave nothing.
        CosmicError: If a split is empty, a layer does not exist, or the architecture does not allow the intervention.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
        >>> selection = select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options)
        >>> len(selection.table)
        8
    """
    options = options or CosmicOptions()
    n_layers = int(model.cfg.n_layers)
    if wrong := [layer for layer in options.evaluation_layers or () if not 0 <= layer < n_layers]:
        raise CosmicError(f"evaluation_layers: found {wrong[0]}, and the model has layers 0 to {n_layers - 1}")
    positions = post_instruction_positions(model, chat, options.n_positions)
    if means is None:
        train = (prompts.side("positive", "train", options.n_train), prompts.side("negative", "train", options.n_train))
        taken = [mean_activations(model, side, positions, chat, batch_size=batch_size) for side in train]
        means = (taken[0], taken[1])
    candidates = difference_in_means(*means)
    similarity = layer_similarity(*means)
    layers = options.evaluation_layers or evaluation_layers(
        similarity, options.evaluation_share, options.exclude_first_half
    )
    positive, negative = (
        list(batches(model, tokenize(model, prompts.side(side, "val", options.n_val), chat), batch_size))
        for side in ("positive", "negative")
    )
    data = _Validation(
        positive,
        negative,
        _mean_last(model, positive, layers),
        _mean_last(model, negative, layers),
        [next_token_logits(model, batch) for batch in negative],
    )
    scores = {} if scores is None else scores
    cells = [(layer, position) for layer in range(n_layers) for position in positions.indices]
    with track(len(cells), "candidates") as advance:
        for layer, position in cells:
            if (layer, position) not in scores:
                finite = (
                    candidates.vectors[layer, position].isfinite().all() and candidates.vectors[layer, position].any()
                )
                scores[layer, position] = (
                    _score(model, candidates.direction(layer, position), options, layers, data)
                    if finite
                    else Scores(nan, nan, nan)
                )
            advance(1)
    clean = float(cosine_similarity(data.target_positive, data.target_negative, dim=0))
    table, filters = _table({cell: scores[cell] for cell in cells}, clean, n_layers, options)
    winner = choose(table, filters)
    return Selection(
        candidates.direction(int(winner.layer), int(winner.position), model),
        table,
        filters,
        explain(table, filters, winner),
        tuple(layers),
        similarity,
        clean,
        positions,
        candidates,
        options.mode,
    )
