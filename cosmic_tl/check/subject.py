"""The model under check, and the same model through plain torch hooks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from math import inf, isnan
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import cosine_similarity

from cosmic_tl.check.memory import Memory, NotPossible
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.errors import CosmicError
from cosmic_tl.export.checkpoint import plain_model
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.forward import TokenBatch
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import Positions, post_instruction_positions
from cosmic_tl.selection.layer_rules import evaluation_layers
from cosmic_tl.selection.options import Cell

Edit = Callable[[Tensor], Tensor]

EXTRA_MEMORY = 1.5
"""GB that the checks may take beyond the loaded model."""
NEW_TOKENS = 16
"""Tokens of each completion."""
ADDED = (
    # What a block adds to the stream, by the names that transformers gives it: after a norm of its own, or directly.
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("self_attn", "mlp"),
    ("self_attn", "block_sparse_moe"),
    ("attn", "mlp"),
    ("attention", "mlp"),
    ("self_attention", "mlp"),
)


Found = tuple[str, str, bool]
"""What was measured, what is allowed, and whether it holds."""


class Subject:
    """The model under check, the same weights in plain transformers, and what several checks share."""

    def __init__(
        self, model: TransformerBridge, positive: list[str], negative: list[str], chat: ChatFormat | None
    ) -> None:
        self.model, self.chat = model, chat
        self.positive, self.negative = positive, negative
        self.positions: Positions = post_instruction_positions(model, chat)
        self.rows = (tokenize(model, positive, chat), tokenize(model, negative, chat))
        self.n_layers = int(model.cfg.n_layers)
        exact = model.cfg.dtype in (torch.float32, torch.float64)
        self.relative = 1e-4 if exact else 5e-2
        """Largest difference between activations, as a share of their norm."""
        self.score = 1e-4 if exact else 5e-3
        """Largest difference between similarities."""
        self.divergence = 1e-4 if exact else 5e-2
        """Largest difference between divergences."""
        self.memory = Memory(model)

    @cached_property
    def plain(self) -> Any:
        """The same weights in plain transformers, with no generation defaults."""
        from transformers import GenerationConfig

        try:
            plain = plain_model(self.model).eval()
        except CosmicError as error:
            raise NotPossible(str(error)) from error
        ends = getattr(self.model.original_model, "generation_config", None) or plain.config
        pad = self.model.tokenizer.pad_token_id
        plain.generation_config = GenerationConfig(eos_token_id=ends.eos_token_id, pad_token_id=pad)
        return plain

    @cached_property
    def blocks(self) -> list[torch.nn.Module]:
        """The plain model's decoder blocks."""
        lists = [m for m in self.plain.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == self.n_layers]
        if not lists:
            raise NotPossible(f"no list of {self.n_layers} blocks in {type(self.plain).__name__}")
        return list(lists[0])

    def ids(self, row: Sequence[int]) -> Tensor:
        """Token ids as a batch of one, where the model is."""
        return torch.tensor([row], device=torch.device(str(self.model.cfg.device)))

    @torch.inference_mode()
    def plain_pass(
        self, rows: Sequence[Sequence[int]], layer: int = 0, edit: Edit | None = None, everywhere: bool = False
    ) -> tuple[Float64[Tensor, "prompt layer position d_model"], ...]:
        """`x[l, i]`, `y[l, i]` and the last logits of each prompt by itself, in plain transformers with raw torch hooks."""
        n, found = len(self.positions), []
        for row in rows:
            before: dict[int, Tensor] = {}
            after: dict[int, Tensor] = {}
            with hooked(self.blocks, n, before, after, layer, edit, everywhere):
                logits = self.plain(self.ids(row)).logits[0, -1].cpu().double()
            layers = range(self.n_layers)
            found.append(([before[i] for i in layers], [after[i] for i in layers], logits))
        return (
            torch.stack([torch.stack(x) for x, _, _ in found]),
            torch.stack([torch.stack(y) for _, y, _ in found]),
            torch.stack([logits for _, _, logits in found])[:, None, None],
        )

    @cached_property
    def clean(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The unedited plain model on the positive and on the negative prompts."""
        return self.plain_pass(self.rows[0]), self.plain_pass(self.rows[1])

    @cached_property
    def candidates(self) -> Candidates:
        """Difference in means, from the plain model's activations."""
        mu, nu = (side[0].mean(0) for side in self.clean)
        return Candidates(mu - nu, nu, "difference-in-means")

    @cached_property
    def cells(self) -> list[Cell]:
        """Two candidates: a third of the way up at the first position, two thirds at the last."""
        layers = (max(1, self.n_layers // 3), max(1, 2 * self.n_layers // 3))
        return [(layers[0], -len(self.positions)), (layers[1], -1)]

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The evaluation layers."""
        mu, nu = (side[1].mean(0)[:, -1] for side in self.clean)
        return evaluation_layers(cosine_similarity(mu, nu, dim=-1))


@contextmanager
def hooked(
    blocks: Sequence[torch.nn.Module],
    n: int,
    before: dict[int, Tensor],
    after: dict[int, Tensor],
    layer: int,
    edit: Edit | None,
    everywhere: bool,
) -> Iterator[None]:
    """Read the last `n` positions of what enters and leaves each block; edit what enters one, or all that is added."""
    handles = []

    def enter(number: int) -> Callable[..., Any]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x = args[0] if args else kwargs["hidden_states"]
            if edit is not None and (everywhere or number == layer):
                x = edit(x)
            before[number] = x[0, -n:].cpu().double()
            return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

        return hook

    def leave(number: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            after[number] = (output[0] if isinstance(output, tuple) else output)[0, -n:].cpu().double()

        return hook

    def added(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        assert edit is not None
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    try:
        for number, block in enumerate(blocks):
            handles += [
                block.register_forward_pre_hook(enter(number), with_kwargs=True),
                block.register_forward_hook(leave(number)),
            ]
            if everywhere:
                handles += [part.register_forward_hook(added) for part in parts_of(block)]
        yield
    finally:
        for handle in handles:
            handle.remove()


def parts_of(block: torch.nn.Module) -> list[torch.nn.Module]:
    """What adds to the stream in a plain block: attention and MLP."""
    for names in ADDED:
        if all(hasattr(block, name) for name in names):
            return [getattr(block, name) for name in names]
    raise NotPossible(f"what {type(block).__name__} adds to the stream goes by names that are not known here")


def apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference between vectors, as a share of the expected one's norm; infinite if there is no number."""
    expected = expected.cpu().double()
    share = float(((found.cpu().double() - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
    return inf if isnan(share) else share


def largest_difference(value: float, allowed: float, what: str = "") -> Found:
    """A difference, its tolerance, and whether it is within."""
    return f"largest difference {value:.1e}{what}", f"{allowed:g}", value <= allowed


def one_batch(subject: Subject) -> TokenBatch:
    """All positive prompts in one batch."""
    return next(batches(subject.model, subject.rows[0], len(subject.rows[0])))
