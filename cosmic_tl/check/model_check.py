"""Whether what this library promises holds on a model, measured against plain `transformers` and raw torch hooks."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import inf, isnan
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import cosine_similarity

from cosmic_tl._util.displays import as_html
from cosmic_tl.activations import mean_of_rows
from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.data.prompts import load_prompts
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.errors import CosmicError
from cosmic_tl.export.checkpoint import plain_model
from cosmic_tl.generation.completions import complete
from cosmic_tl.interventions.edits import Ablation, AffineEdit
from cosmic_tl.interventions.options import Mode
from cosmic_tl.interventions.steer import steering
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.forward import TokenBatch, next_token_logits, read
from cosmic_tl.model.load import TransformerBridge, model_label
from cosmic_tl.model.positions import Positions, post_instruction_positions
from cosmic_tl.selection.cosmic import evaluation_layers
from cosmic_tl.selection.cosmic_scores import CosmicScorer
from cosmic_tl.selection.options import Cell, CosmicOptions
from cosmic_tl.selection.scores import Scores

Result = Literal["ok", "FAILED", "not checked"]
Edit = Callable[[Tensor], Tensor]

EXTRA_MEMORY = 1.5
"""GB that the checks may take beyond the loaded model."""
NEW_TOKENS = 16
"""Tokens of each completion."""
_ADDED = (
    # What a block adds to the stream, by the names that transformers gives it: after a norm of its own, or directly.
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("self_attn", "mlp"),
    ("self_attn", "block_sparse_moe"),
    ("attn", "mlp"),
    ("attention", "mlp"),
    ("self_attention", "mlp"),
)


@dataclass(frozen=True)
class Check:
    """One promise, and what was found."""

    name: str
    measured: str
    tolerance: str
    result: Result

    def __str__(self) -> str:
        allowed = f" (tolerance {self.tolerance})" if self.tolerance else ""
        return f"{self.result:<11}  {self.name}: {self.measured}{allowed}"


@dataclass(frozen=True, eq=False)
class ModelCheck:
    """What was checked on a model."""

    model: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed.

        Example:
            >>> ModelCheck("m", (Check("positions", "none found", "", "FAILED"),)).ok
            False
        """
        return all(check.result != "FAILED" for check in self.checks)

    @property
    def table(self) -> pd.DataFrame:
        """One row per check: check, measured, tolerance, result.

        Example:
            >>> ModelCheck("m", (Check("positions", "5", "", "ok"),)).table.result.tolist()
            ['ok']
        """
        rows = [(check.name, check.measured, check.tolerance, check.result) for check in self.checks]
        return pd.DataFrame(rows, columns=["check", "measured", "tolerance", "result"])

    def __repr__(self) -> str:
        failed = sum(check.result == "FAILED" for check in self.checks)
        head = f"ModelCheck({self.model}): {failed} of {len(self.checks)} checks failed"
        return "\n".join([head, *map(str, self.checks)])

    def _repr_html_(self) -> str:
        return as_html([repr(self).partition("\n")[0]], self.table)


def check_model(
    model: TransformerBridge,
    prompts: ContrastSet | None = None,
    *,
    chat: ChatFormat | None = None,
    n: int = 4,
    on_check: Callable[[Check], object] = lambda check: None,
) -> ModelCheck:
    """Check on a few prompts that everything a selection rests on is right for a model.

    Positions, activations, scores and completions are compared with those of the same weights in plain `transformers`,
    edited by raw torch hooks. Where that is not possible, as for quantized or offloaded weights, a check is not made and says
    why. The weights are held once; tolerances are those of float32, or of 16-bit numbers where the model holds such.

    Args:
        model: Any bridge with a tokenizer.
        prompts: Training prompts of both sides are used. Default: the demo's.
        chat: Formatting. Defaults to the plain chat template.
        n: Prompts per side. Default 4.
        on_check: Called with each check as it is done.

    Raises:
        CosmicError: If `n` is below 2, or the prompts do not fit the model.

    Example:
        >>> from cosmic_tl import load_model
        >>> check_model(load_model("demo", device="cpu"), n=2).ok
        True
    """
    if n < 2:
        raise CosmicError(f"n: must be at least 2, found {n}")
    prompts = prompts or load_prompts("demo")
    subject = _Subject(model, prompts.side("positive", "train", n), prompts.side("negative", "train", n), chat)
    found = []
    for name, check in _CHECKS.items():
        try:
            measured, tolerance, holds = check(subject)
            result: Result = "ok" if holds else "FAILED"
        except _NotPossible as error:
            measured, tolerance, result = str(error), "", "not checked"
        except Exception as error:  # whatever a model does wrong is what is asked for
            measured, tolerance, result = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", "", "FAILED"
        found.append(Check(name, measured, tolerance, result))
        on_check(found[-1])
    return ModelCheck(model_label(model), tuple(found))


class _NotPossible(Exception):
    """Why a check cannot be made on this model."""


Found = tuple[str, str, bool]
"""What was measured, what is allowed, and whether it holds."""


class _Subject:
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
        self.memory = _Memory(model)

    @cached_property
    def plain(self) -> Any:
        """The same weights in plain transformers, with no generation defaults."""
        from transformers import GenerationConfig

        try:
            plain = plain_model(self.model).eval()
        except CosmicError as error:
            raise _NotPossible(str(error)) from error
        ends = getattr(self.model.original_model, "generation_config", None) or plain.config
        pad = self.model.tokenizer.pad_token_id
        plain.generation_config = GenerationConfig(eos_token_id=ends.eos_token_id, pad_token_id=pad)
        return plain

    @cached_property
    def blocks(self) -> list[torch.nn.Module]:
        """The plain model's decoder blocks."""
        lists = [m for m in self.plain.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == self.n_layers]
        if not lists:
            raise _NotPossible(f"no list of {self.n_layers} blocks in {type(self.plain).__name__}")
        return list(lists[0])

    def ids(self, row: Sequence[int]) -> Tensor:
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
            with _hooked(self.blocks, n, before, after, layer, edit, everywhere):
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
def _hooked(
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
                handles += [part.register_forward_hook(added) for part in _parts(block)]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(block: torch.nn.Module) -> list[torch.nn.Module]:
    for names in _ADDED:
        if all(hasattr(block, name) for name in names):
            return [getattr(block, name) for name in names]
    raise _NotPossible(f"what {type(block).__name__} adds to the stream goes by names that are not known here")


def _apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference between vectors, as a share of the expected one's norm; infinite if there is no number."""
    expected = expected.cpu().double()
    share = float(((found.cpu().double() - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
    return inf if isnan(share) else share


def _difference(value: float, allowed: float, what: str = "") -> Found:
    return f"largest difference {value:.1e}{what}", f"{allowed:g}", value <= allowed


def _positions(subject: _Subject) -> Found:
    n, labels = len(subject.positions), subject.positions.labels
    ends = {tuple(row[-n:]) for rows in subject.rows for row in rows}
    text = " ".join(map(repr, labels))
    if not bool(subject.model.tokenizer.chat_template):
        return f"the last {n}; the tokenizer has no chat template", "", n > 0
    tokenizer = subject.model.tokenizer
    holds = all([tokenizer.decode([token]) for token in end] == list(labels) for end in ends)
    seen = "the same in all prompts" if len(ends) == 1 else f"{len(ends)} different ends"
    return f"{n} after the user's text, {text}: {seen}", "", holds and len(ends) == 1


def _logits(subject: _Subject) -> Found:
    rows = subject.rows[0]
    batch = next(batches(subject.model, rows, len(rows)))
    found = next_token_logits(subject.model, batch)
    expected = subject.clean[0][2][list(batch.rows), 0, 0]
    return _difference(_apart(found, expected), subject.relative, ", in a padded batch against each prompt alone")


def _means(subject: _Subject) -> Found:
    found = mean_of_rows(
        subject.model, subject.rows[0], n_positions=len(subject.positions), batch_size=len(subject.rows[0])
    )
    before, after, _ = (x.mean(0) for x in subject.clean[0])
    return _difference(max(_apart(found.resid_pre, before), _apart(found.resid_post, after)), subject.relative)


@torch.inference_mode()
def _hidden_states(subject: _Subject) -> Found:
    n, states = len(subject.positions), []
    for row in subject.rows[1]:
        found = subject.plain(subject.ids(row), output_hidden_states=True).hidden_states
        if len(found) != subject.n_layers + 1:
            raise _NotPossible(f"{type(subject.plain).__name__} returns {len(found)} hidden states")
        states.append(torch.stack([h[0, -n:].cpu().double() for h in found[:-1]]))  # the last is after the final norm
    means = mean_of_rows(subject.model, subject.rows[1], n_positions=n, batch_size=len(states))
    return _difference(_apart(means.resid_pre, torch.stack(states).mean(0)), subject.relative)


def _scores(mode: Mode) -> Callable[[_Subject], Found]:
    def check(subject: _Subject) -> Found:
        expected = _plain_scores(subject, mode)
        found: Scores = {}
        options = CosmicOptions(mode=mode)
        scorer = CosmicScorer(subject.model, *subject.rows, subject.candidates, subject.layers, options, None, found)
        for measure in ("s_comply", "s_refuse", "kl"):
            scorer.compute(measure, subject.cells)
        cosines = max(abs(found[key] - value) for key, value in expected.items() if key[2] != "kl")
        # A divergence is no cosine: above one nat its difference is taken as a share.
        kl = max(abs(found[key] - value) / max(1.0, value) for key, value in expected.items() if key[2] == "kl")
        cells = " and ".join(f"({layer}, {position})" for layer, position in subject.cells)
        measured = f"largest difference {cosines:.1e} in similarity, {kl:.1e} in KL, candidates {cells}"
        allowed = f"{subject.score:g} and {subject.divergence:g}"
        return measured, allowed, cosines <= subject.score and kl <= subject.divergence

    return check


def _plain_scores(subject: _Subject, mode: Mode) -> Mapping[tuple[int, int, str], float]:
    """The formulas (Siu et al. 2025), by full passes of the plain model."""
    low = list(subject.layers)
    positive, negative = subject.clean
    targets = [side[1][:, low, -1].mean((0, 1)) for side in (positive, negative)]
    found: dict[tuple[int, int, str], float] = {}
    for layer, position in subject.cells:
        device, dtype = subject.ids([0]).device, subject.model.cfg.dtype
        r, nu = (
            both[layer, position].to(device, dtype)
            for both in (subject.candidates.vectors.float(), subject.candidates.references.float())
        )
        unit = r.float() / r.float().norm()

        def along(x: Tensor, unit: Tensor = unit) -> Tensor:
            return (x.float() @ unit)[..., None] * unit

        def remove(x: Tensor, nu: Tensor = nu, along: Edit = along) -> Tensor:
            return (x - along(x) + (along(nu) if mode == "affine" else 0)).to(x.dtype)

        def induce(x: Tensor, r: Tensor = r, remove: Edit = remove) -> Tensor:
            return remove(x) + r if mode == "affine" else x + r

        everywhere = mode == "linear"
        removed = subject.plain_pass(subject.rows[0], layer, remove, everywhere)[1][:, low, -1].mean((0, 1))
        induced = subject.plain_pass(subject.rows[1], layer, induce)[1][:, low, -1].mean((0, 1))
        edited = subject.plain_pass(subject.rows[1], layer, remove, everywhere)[2]
        p, q = negative[2].softmax(-1), edited.softmax(-1)
        kl = (p * ((p + 1e-6).log() - (q + 1e-6).log())).sum(-1).mean()
        values = cosine_similarity(removed, targets[1], dim=0), cosine_similarity(induced, targets[0], dim=0), kl
        found |= {
            (layer, position, measure): float(value)
            for measure, value in zip(("s_comply", "s_refuse", "kl"), values, strict=True)
        }
    return found


def _batch(subject: _Subject) -> TokenBatch:
    return next(batches(subject.model, subject.rows[0], len(subject.rows[0])))


def _ablation(subject: _Subject) -> Found:
    direction = subject.candidates.direction(*subject.cells[-1])
    unit = direction.unit.double()
    left = 0.0
    with steering(subject.model, Ablation(direction)):
        found = read(subject.model, _batch(subject), [(i, "hook_resid_post") for i in range(subject.n_layers)])
    for y in found.values():
        vectors = y.cpu().double()
        left = max(left, float(((vectors @ unit).abs() / vectors.norm(dim=-1)).max()))
    allowed = subject.relative
    return f"{left:.1e} of the stream's norm is left along an ablated direction", f"{allowed:g}", left <= allowed


def _restoration(subject: _Subject) -> Found:
    batch = _batch(subject)
    direction = subject.candidates.direction(*subject.cells[-1])
    before = next_token_logits(subject.model, batch)
    moved = 0.0
    try:
        with steering(subject.model, AffineEdit(direction, alpha=1.0)):
            moved = _apart(next_token_logits(subject.model, batch), before)
            raise KeyboardInterrupt  # as when a user stops in the middle
    except KeyboardInterrupt:
        after = next_token_logits(subject.model, batch)
    same = bool((after == before).all())
    what = "the same bit for bit" if same else f"changed by {_apart(after, before):.1e}"
    return f"an edit moves the logits by {moved:.0%}; after it they are {what}", "", same and moved > 0


@torch.inference_mode()
def _generation(subject: _Subject) -> Found:
    texts = [*subject.positive[:2], *subject.negative[:2]]
    rows = [*subject.rows[0][:2], *subject.rows[1][:2]]
    alone = complete(subject.model, texts, chat=subject.chat, max_new_tokens=NEW_TOKENS, batch_size=1)
    together = complete(subject.model, texts, chat=subject.chat, max_new_tokens=NEW_TOKENS, batch_size=len(texts))
    expected = []
    for row in rows:
        ids = subject.ids(row)
        tokens = subject.plain.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS
        )
        expected.append(subject.model.tokenizer.decode(tokens[0, len(row) :], skip_special_tokens=True).strip())
    equal = [sum(a == b for a, b in zip(some, expected, strict=True)) for some in (alone, together)]
    n = len(texts)
    measured = f"{equal[0]} of {n} greedy completions equal transformers', {equal[1]} in a padded batch"
    # In 16 bits a padded batch rounds differently, and a close call falls either way.
    batched_too = equal[1] == n or subject.model.cfg.dtype not in (torch.float32, torch.float64)
    return measured, "all", equal[0] == n and batched_too


@torch.inference_mode()
def _steered_generation(subject: _Subject) -> Found:
    text, row = subject.negative[0], list(subject.rows[1][0])
    edit = AffineEdit(subject.candidates.direction(*subject.cells[-1]), alpha=1.0)
    found = complete(subject.model, [text], edit, chat=subject.chat, max_new_tokens=NEW_TOKENS // 2)[0]
    ends = subject.plain.generation_config.eos_token_id
    new: list[int] = []
    with steering(subject.model, edit):
        while len(new) < NEW_TOKENS // 2 and (not new or new[-1] not in (ends if isinstance(ends, list) else [ends])):
            logits = next_token_logits(subject.model, next(batches(subject.model, [row + new], 1)))
            new.append(int(logits[0].argmax()))
    expected = subject.model.tokenizer.decode(new, skip_special_tokens=True).strip()
    same = found == expected
    measured = (
        f"a steered completion {'equals' if same else 'differs from'} one full pass for each of {len(new)} tokens"
    )
    return measured, "", same


class _Memory:
    """Peak memory beyond what the loaded model holds."""

    def __init__(self, model: TransformerBridge) -> None:
        self.device = torch.device(str(model.cfg.device))
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start = torch.cuda.memory_allocated(self.device)
        else:
            self.start = _resident()

    def extra(self) -> float:
        """In GB; for a CPU an upper bound, since the peak is that of the whole process so far."""
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self.device) - self.start) / 1e9
        return (_peak() - self.start) / 1e9


def _resident() -> int:
    """Bytes that the process holds now; where the system does not say, the most so far."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return _peak()
    import resource

    return int(statm.read_text().split()[1]) * resource.getpagesize()


def _peak() -> int:
    """The most bytes that the process held."""
    import sys

    try:
        import resource
    except ImportError as error:
        raise _NotPossible("this system does not say how much memory a process takes") from error
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _memory(subject: _Subject) -> Found:
    extra = subject.memory.extra()
    weights = sum(p.numel() * p.element_size() for p in subject.model.original_model.parameters()) / 1e9
    return (
        f"at most {extra:.2f} GB beyond the loaded model, whose weights take {weights:.2f} GB",
        f"{EXTRA_MEMORY:g} GB",
        extra <= EXTRA_MEMORY,
    )


@torch.inference_mode()
def _speed(subject: _Subject) -> Found:
    batch = _batch(subject)

    def seconds(run: Callable[[], object]) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            run()
            if batch.ids.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    ours = seconds(lambda: next_token_logits(subject.model, batch))
    theirs = seconds(lambda: subject.plain(batch.ids, attention_mask=batch.mask).logits)
    speed = int(batch.mask.sum()) / ours
    return (
        f"{speed:,.0f} tokens per second; a pass takes {ours / theirs:.2f} times as long as in transformers",
        "",
        ours > 0,
    )


_CHECKS: Mapping[str, Callable[[_Subject], Found]] = {
    "positions": _positions,
    "logits": _logits,
    "mean activations against plain hooks": _means,
    "mean activations against hidden states": _hidden_states,
    "scores, affine mode": _scores("affine"),
    "scores, linear mode": _scores("linear"),
    "ablation holds in the stream": _ablation,
    "edits are undone": _restoration,
    "generation": _generation,
    "steered generation": _steered_generation,
    "memory": _memory,
    "speed": _speed,
}
