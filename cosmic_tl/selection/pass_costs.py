"""Multiply-adds of blocks and passes."""

from collections.abc import Sequence
from dataclasses import dataclass

from cosmic_tl.model.load import TransformerBridge

_JOINT = {"qkv": "q", "gate_up_proj": "gate"}
"""Joint matrices, which TransformerLens also holds in parts."""


@dataclass(frozen=True)
class BlockCost:
    """Multiply-adds of one block for one token, by its weight matrices; of experts, those that a token goes through."""

    weights: int
    keys_values: int
    """The part that makes keys and values, all that later tokens need of a token in the last block."""
    scores: int
    """Attention scores and their use, for each token that is looked at."""


def block_costs(model: TransformerBridge) -> list[BlockCost]:
    """What each block costs.

    Example:
        >>> from cosmic_tl import load_model
        >>> block_costs(load_model("demo", device="cpu"))[0]
        BlockCost(weights=184320, keys_values=16384, scores=256)
    """
    cfg = model.cfg
    experts, used = int(getattr(cfg, "num_experts", None) or 1), int(getattr(cfg, "experts_per_token", None) or 1)
    found = []
    for block in model.blocks:
        params = {name: param for name, param in block.original_component.named_parameters() if param.ndim > 1}
        weights = 0
        for name, param in params.items():
            if "expert" in name:
                weights += param.numel() * used // experts
            elif not any(
                f".{whole}" in name and any(f".{part}." in n for n in params) for whole, part in _JOINT.items()
            ):
                weights += param.numel()
        matrices = [getattr(getattr(getattr(block, "attn", None), which, None), "weight", None) for which in "kv"]
        keys_values = sum(int(matrix.numel()) for matrix in matrices if matrix is not None)
        found.append(BlockCost(weights, keys_values, 2 * int(cfg.n_heads) * int(cfg.d_head)))
    return found


@dataclass(frozen=True)
class Tokens:
    """Prompts of one side, in numbers."""

    prompts: int
    prefix: int
    """Tokens that all share and that are run once per edit."""
    own: int
    """All other tokens, over all prompts."""
    looked_at: int
    """Tokens that own tokens attend to, themselves included, over all prompts."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], prefix: int) -> "Tokens":
        """Count the tokens of some prompts.

        Example:
            >>> Tokens.of([[1, 2, 3], [1, 2, 4, 5]], prefix=2)
            Tokens(prompts=2, prefix=2, own=3, looked_at=10)
        """
        own = [len(row) - prefix for row in rows]
        return cls(len(rows), prefix, sum(own), sum(n * prefix + n * (n + 1) // 2 for n in own))


def macs(tokens: Tokens, blocks: Sequence[BlockCost], source: int, last: int, unembedding: int = 0) -> int:
    """Multiply-adds of one exact pass of all prompts that resumes at `source` and stops in `last`.

    In the last block every token gives its keys and values, and the last one alone goes on.

    Args:
        tokens: The prompts.
        blocks: From `block_costs`.
        source: The first block that runs.
        last: The last block that runs.
        unembedding: Multiply-adds of one position's logits, if they are read.

    Example:
        >>> blocks = [BlockCost(weights=100, keys_values=10, scores=0)] * 3
        >>> macs(Tokens(prompts=2, prefix=0, own=8, looked_at=20), blocks, source=1, last=2)
        1060
    """
    prefix_looks = tokens.prefix * (tokens.prefix + 1) // 2
    total = tokens.prompts * unembedding
    for block in blocks[source:last]:
        total += (tokens.own + tokens.prefix) * block.weights + (tokens.looked_at + prefix_looks) * block.scores
    final, ends = blocks[last], tokens.prompts
    total += (tokens.own + tokens.prefix - ends) * final.keys_values + ends * final.weights
    return total + tokens.looked_at * ends // max(tokens.own, 1) * final.scores


def padded_macs(blocks: Sequence[BlockCost], rows: int, width: int, prefix: int, source: int, last: int) -> int:
    """Multiply-adds of one pass as it is made: padding is computed, and so are attention scores that the mask drops.

    Args:
        blocks: From `block_costs`.
        rows: Rows of the pass.
        width: Tokens of each, padding included, without the prefix.
        prefix: Tokens before them, whose keys and values are known.
        source: The first block that runs.
        last: The last block that runs.

    Example:
        >>> padded_macs([BlockCost(weights=100, keys_values=10, scores=1)] * 2, 2, 4, 0, source=0, last=1)
        1100
    """
    tokens = rows * width
    return macs(Tokens(rows, 0, tokens, tokens * (prefix + width)), blocks, source, last)
