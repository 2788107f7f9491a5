"""What a causal map costs, before it is made."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl._util.displays import number
from cosmic_tl._util.results import Result
from cosmic_tl.data.contrast_set import Prompts
from cosmic_tl.experiments.causal import mapped_layers
from cosmic_tl.experiments.causal_prompts import exchanged_prompts
from cosmic_tl.experiments.causal_statistics import DIRECTION, PLACEBO, WHOLE
from cosmic_tl.experiments.options import CausalOptions
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import post_instruction_positions
from cosmic_tl.selection.pass_costs import BlockCost, Tokens, block_costs, macs


@checked
@dataclass(frozen=True, eq=False, repr=False)
class CausalPlan(Result):
    """The passes of a causal map, and their multiply-adds."""

    table: pd.DataFrame
    """One row per step: step ("means", "clean", "direction", "placebo" or "whole"), patches (their number; 0 of a step that makes
    none) and gmacs (10⁹ multiply-adds)."""
    n_prompts: tuple[int, int]
    """Positive and negative prompts on which effects are measured."""

    @property
    def gmacs(self) -> float:
        """All of them together.

        Example:
            >>> CausalPlan(pd.DataFrame({"patches": [0, 8], "gmacs": [1.0, 2.5]}), (4, 4)).gmacs
            3.5
        """
        return float(self.table.gmacs.sum())

    def _lines(self) -> list[str]:
        n, m = self.n_prompts
        return [f"CausalPlan: {self.table.patches.sum()} patches of {n} + {m} prompts, {number(self.gmacs)} GMACs"]


@checked
def plan_causal_map(
    model: TransformerBridge,
    prompts: Prompts,
    options: CausalOptions | None = None,
    *,
    n_train: int | None = None,
    n_val: int | None = None,
    chat: ChatFormat | None = None,
) -> CausalPlan:
    """What `causal_map` would take, without making it.

    Args:
        model: A `TransformerBridge`.
        prompts: As for `causal_map`.
        options: What is exchanged, and where. Default that of `causal_map`.
        n_train: Training prompts per side, of a contrast set. Default all.
        n_val: Validation prompts, or pairs, per side. Default all.
        chat: Formatting. Defaults to the plain chat template.

    Raises:
        CosmicError: As `causal_map`.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> plan = plan_causal_map(load_model("demo", device="cpu"), load_prompts("demo"), n_train=8, n_val=4)
        >>> plan.table.patches.tolist()  # 8 layers, 5 positions
        [0, 0, 40, 40, 40]
    """
    options = options or CausalOptions()
    layers = mapped_layers(model, options.layers)
    k = len(post_instruction_positions(model, chat, options.n_positions))
    train, val = exchanged_prompts(prompts, options.treatment, n_train, n_val)
    rows = [tokenize(model, side, chat) for side in val]
    changed = rows[0] if options.treatment == "removal" else [*rows[0], *rows[1]]
    blocks, unembedding = block_costs(model), int(model.cfg.d_model) * int(model.cfg.d_vocab)
    given = train[1:] if options.treatment == "removal" else train
    means = sum(_whole(tokenize(model, side, chat), blocks, 0) for side in given)
    clean = _whole([*rows[0], *rows[1]], blocks, unembedding)
    # In the last block other tokens are only looked at, at its input.
    reaches = options.part == "stream" or options.span == "up-to" or options.token_span == "from"
    n_heads = int(model.cfg.n_heads) if options.part == "head" else 1
    one_map = n_heads * sum(
        patch_macs(changed, blocks, 0 if options.span == "up-to" else layer, back, unembedding)
        for layer in layers
        for back in range(1, k + 1)
        if layer < len(blocks) - 1 or back == 1 or reaches
    )
    n = n_heads * len(layers) * k
    steps = [("means", 0, means), ("clean", 0, clean), (DIRECTION, n, one_map)]
    steps += [(PLACEBO, n * options.n_placebos, one_map * options.n_placebos)]
    steps += [(WHOLE, n, one_map)] if options.whole else []
    table = pd.DataFrame(steps, columns=["step", "patches", "gmacs"])
    return CausalPlan(table.assign(gmacs=table.gmacs / 1e9), (len(rows[0]), len(rows[1])))


def _whole(rows: Sequence[Sequence[int]], blocks: Sequence[BlockCost], unembedding: int) -> int:
    return macs(Tokens.of(rows, 0), blocks, 0, len(blocks) - 1, unembedding)


def patch_macs(
    rows: Sequence[Sequence[int]], blocks: Sequence[BlockCost], first: int, back: int, unembedding: int
) -> int:
    """Multiply-adds of one patch on some prompts: the last `back` tokens from block `first` on, and the last token's logits.

    Example:
        >>> blocks = [BlockCost(weights=100, keys_values=10, scores=1)] * 2
        >>> patch_macs([[1, 2, 3]], blocks, first=0, back=2, unembedding=7)  # 2·100 + (2 + 3)·1, 100 + 10 + 3·1, 7
        325
    """
    n, looked_at = len(rows), sum(back * len(row) - back * (back - 1) // 2 for row in rows)
    total = sum(back * n * block.weights + looked_at * block.scores for block in blocks[first:-1])
    last = blocks[-1]
    return total + n * (last.weights + (back - 1) * last.keys_values + unembedding) + sum(map(len, rows)) * last.scores
