"""The memory that a selection takes at its peak, part by part, from shapes alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl.engine.by_block import HELD
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.selection.options import PLACEBOS

DOUBLE, SINGLE = 8, 4
"""Bytes of a number in float64 and float32."""


@dataclass(frozen=True)
class ModelShape:
    """What memory depends on, of a model."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    number: int
    """Bytes of a number of the stream."""
    weights: int
    """Bytes of the weights that stay in memory."""
    block: int = 0
    """Bytes of the largest block, if blocks are offloaded and loaded one at a time."""

    @classmethod
    def of(cls, model: TransformerBridge) -> "ModelShape":
        """The shape of a model.

        Example:
            >>> from cosmic_tl import load_model
            >>> ModelShape.of(load_model("demo", device="cpu")).n_kv_heads
            2
        """
        # A block's parameters, each once, although TransformerLens shows joint matrices in parts too.
        cfg, blocks = model.cfg, [[*block.original_component.parameters()] for block in model.blocks]
        heads = int(cfg.n_heads)
        weights, block = _bytes(model.original_model.parameters()), 0
        if getattr(model.original_model, "hf_device_map", None) is not None:
            away = [[one for one in some if one.device.type == "meta"] for some in blocks]
            weights, block = weights - sum(map(_bytes, away)), max(map(_bytes, away))
        return cls(
            int(cfg.n_layers),
            int(cfg.d_model),
            heads,
            int(getattr(cfg, "n_key_value_heads", None) or heads),
            int(cfg.d_head),
            int(cfg.d_mlp or 4 * cfg.d_model),
            int(cfg.d_vocab),
            int(cfg.dtype.itemsize),
            weights,
            block,
        )


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in parameters)


@dataclass(frozen=True)
class SideShape:
    """What memory depends on, of one side's validation prompts and their passes."""

    prefix: int
    """Tokens that all prompts begin with."""
    together: int
    """Edits per pass, at most."""
    batches: tuple[tuple[int, int], ...]
    """Prompts and tokens of each, without the prefix, of every batch. A pass takes one batch under each of its edits."""
    depth: int | None = None
    """Blocks that a pass runs at most; None for all."""

    @property
    def prompts(self) -> int:
        """How many.

        Example:
            >>> SideShape(0, 5, ((3, 10), (1, 12))).prompts
            4
        """
        return sum(n for n, _ in self.batches)

    @property
    def tokens(self) -> int:
        """Of all prompts, padding included, the prefix not.

        Example:
            >>> SideShape(0, 5, ((3, 10), (1, 12))).tokens
            42
        """
        return sum(n * width for n, width in self.batches)


@checked
@dataclass(frozen=True)
class MemoryUse:
    """Bytes that a selection holds at its peak. Python and its libraries come on top: 0.5 to 1 GB."""

    weights: int
    """All of the model's; of offloaded blocks the largest one alone."""
    means: int
    """Training means and candidates, with their placebos, in float64."""
    readouts: int
    """What the unedited model gave: last-token activations in float64, and logits in float32, of both sides."""
    stream: int
    """The stream of one side's prompts at one layer, all their tokens; of offloaded blocks also under the edits under way."""
    prefix: int
    """Keys and values of the shared prefix in every layer, once per edit of a pass."""
    activations: int
    """Of one pass: the largest of attention, MLP, and logits with their divergence."""
    results: int
    """What is kept of the edits of a pass, in float64."""
    products: int
    """Inner products between validation prompts, kept for `Selection.stability`."""
    first_pass: int
    """Beyond weights and means while means are taken: the activations of a batch at every layer."""

    @property
    def total(self) -> int:
        """All of it, in bytes: weights, means, and the larger of what means and scores take.

        Example:
            >>> MemoryUse(100, 10, 1, 1, 1, 1, 1, 1, 20).total
            130
        """
        scores = self.readouts + self.stream + self.prefix + self.activations + self.results + self.products
        return self.weights + self.means + max(scores, self.first_pass)

    @property
    def parts(self) -> Mapping[str, int]:
        """Bytes by part.

        Example:
            >>> MemoryUse(100, 10, 1, 1, 1, 1, 1, 1, 20).parts["weights"]
            100
        """
        return {one.name: getattr(self, one.name) for one in fields(self)}


@checked
def memory_use(
    shape: ModelShape,
    sides: Sequence[SideShape],
    *,
    n_positions: int,
    n_layers_read: int = 1,
    n_features: int = 1,
    resampled: bool = True,
    train: SideShape | None = None,
) -> MemoryUse:
    """The memory of a COSMIC selection at its peak.

    Args:
        shape: The model.
        sides: Positive and negative validation prompts in the passes of their scores, then any other passes on the same prompts.
        n_positions: Candidates per layer.
        n_layers_read: Evaluation layers.
        n_features: Layers that are kept side by side: `n_layers_read` for the target "concatenated", or 1.
        resampled: Whether inner products are kept.
        train: Training prompts of a side in their batches; None if means are given.

    Example:
        >>> shape = ModelShape(32, 4096, 32, 8, 128, 14_336, 128_256, 2, 16_060_522_496)  # 8 B in bfloat16
        >>> side = SideShape(prefix=20, together=5, batches=((20, 30),) * 5)  # 100 prompts
        >>> train = SideShape(prefix=20, together=1, batches=((32, 30),) * 3)
        >>> found = memory_use(shape, [side, side], n_positions=5, train=train)
        >>> [round(part / 1e9, 2) for part in (found.weights, found.stream, found.total)]
        [16.06, 0.03, 17.38]
    """
    d, s, candidates = shape.d_model, shape.number, shape.n_layers * n_positions
    keys_values = 2 * shape.n_kv_heads * shape.d_head * s  # of one token in one layer
    vectors = 4 + 3 * PLACEBOS + 2  # means of both sides before and after a block; halves of both, placebos; candidates
    read = n_layers_read * d * s + n_features * d * DOUBLE
    prompts = sum(side.prompts for side in sides[:2])
    most = max(sides, key=lambda side: side.tokens)
    # Between two offloaded blocks the streams of many edits wait.
    waiting = min(candidates * most.tokens * d * s, max(HELD, shape.block)) if shape.block else 0
    first_pass = 0
    if train is not None:
        for n, width in train.batches:
            kept = candidates * n * d  # numbers at one of the two points of every block
            reached = 2 * kept * s + max(kept * (2 * s + 2 * DOUBLE), _pass(shape, n, width, train.prefix, 0, None))
            first_pass = max(first_pass, reached)
    return MemoryUse(
        shape.weights + shape.block,
        (2 if train is None else vectors) * candidates * d * DOUBLE,
        prompts * (read + shape.d_vocab * SINGLE),
        most.tokens * d * s + max(n * width for n, width in most.batches) * d * s + waiting,
        max(side.prefix * (side.together + 1) for side in sides) * shape.n_layers * keys_values,
        max(
            _pass(shape, side.together * n, width, side.prefix, side.together, side.depth)
            for side in sides
            for n, width in side.batches
        ),
        max(side.together * side.prompts for side in sides) * n_features * d * DOUBLE,
        prompts * prompts * candidates * SINGLE if resampled else 0,
        first_pass,
    )


def _pass(shape: ModelShape, rows: int, width: int, prefix: int, edits: int, depth: int | None) -> int:
    """Bytes of one pass beyond the weights and what it resumes from; with edits also of its logits."""
    s, tokens, seen = shape.number, rows * width, prefix + width
    stream = tokens * shape.d_model * s
    own = (shape.n_heads + 2 * shape.n_kv_heads) * shape.d_head * s * tokens
    # A pass that goes on from a prefix keeps its own keys and values beside copies of the prefix's, in every block that it runs.
    kept = rows * seen * (depth or shape.n_layers) if prefix else 0
    past = 2 * shape.n_kv_heads * shape.d_head * s * kept
    pairs = rows * shape.n_heads * width * seen
    attention = 3 * stream + own + 2 * rows * seen * shape.n_heads * shape.d_head * s + pairs * (s + 2 * SINGLE)
    mlp = 3 * stream + 3 * tokens * shape.d_mlp * s
    # Logits of all rows; of the divergence five float64 copies of one edit's rows, and the clean ones that it compares with.
    logits = rows * shape.d_vocab * SINGLE + rows // edits * shape.d_vocab * (5 * DOUBLE + SINGLE) if edits else 0
    return stream + past + max(attention, mlp, logits)
