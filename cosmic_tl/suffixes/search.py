"""Greedy coordinate gradient: find a suffix that makes the model comply (Zou et al. 2023, algorithm 1).

Each step computes the gradient of the loss for replacing every suffix token by every other token, draws substitutions
among the steepest, evaluates all of them exactly, and moves to the best. The loss is that of the beginning of a
compliant answer; with several prompts it is their mean, which makes the suffix universal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl.errors import CosmicError, check_texts
from cosmic_tl.generation.completions import complete
from cosmic_tl.judges.base import Verdict
from cosmic_tl.judges.substring import judge_refusal
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.fingerprint import model_fingerprint
from cosmic_tl.model.forward import TokenBatch, last_logits
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.suffixes.suffix import Suffix, SuffixOptions
from cosmic_tl.suffixes.tokens import Frame, Tokens, draw_suffixes, frames, surviving_texts, usable_tokens

_TRIES = 20
_CHUNK = 8192


@checked
def find_suffix(
    model: TransformerBridge,
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    options: SuffixOptions | None = None,
    chat: ChatFormat | None = None,
    start: str | None = None,
) -> Suffix:
    """Search for one suffix that makes the model comply with every prompt.

    Every few steps the best suffix is tried with full completions. Returns the suffix with the most compliance, also
    when the search is stopped with Ctrl-C. `start=suffix.text` continues a search.

    Args:
        model: A `TransformerBridge` with a tokenizer, whose embedding is a lookup.
        prompts: Instructions that the model refuses; with several the suffix is universal.
        targets: The beginning of a compliant answer to each prompt, for example from `compliant_targets`.
        options: Length, budget and seed.
        chat: Formatting. Defaults to the plain chat template. The suffix is put at the end of the user's text.
        start: Initial suffix; its length replaces `options.n_tokens`. Defaults to random tokens.

    Raises:
        CosmicError: If the lists differ in length, a target is empty, the start does not survive tokenization, or no
            candidate does.

    Example:
        >>> from cosmic_tl import load_model
        >>> options = SuffixOptions(n_tokens=4, steps=2, n_candidates=8)
        >>> model = load_model("demo", device="cpu")
        >>> suffix = find_suffix(model, ["Rob a bank clerk."], ["Of course."], options=options)
        >>> len(suffix.ids), len(suffix.losses) <= 2
        (4, True)
    """
    options, chat = options or SuffixOptions(), chat or ChatFormat()
    check_texts("prompts", prompts)
    check_texts("targets", targets)
    if len(prompts) != len(targets):
        raise CosmicError(f"targets: found {len(targets)} for {len(prompts)} prompts; give one per prompt")
    places = frames(model, prompts, chat)
    tokenizer: Any = model.tokenizer
    goals = [tuple(row) for row in tokenizer(list(targets), add_special_tokens=False)["input_ids"]]
    if empty := [i for i, goal in enumerate(goals) if not goal]:
        raise CosmicError(f"targets: target {empty[0]} is empty; give the first words of a compliant answer")
    generator = torch.Generator().manual_seed(options.seed)
    usable = torch.tensor(usable_tokens(model, options.ascii_only))
    if start is None:
        ids, text = draw_suffixes(model, [places], options.n_tokens, generator, chat, options.ascii_only)[0]
    else:
        ids, text = _start(model, places, start, usable, chat)

    def check(ids: Tokens, text: str) -> _Checked:
        asked = [prompt + text for prompt in prompts]
        answers = complete(
            model, asked, (), chat=chat, max_new_tokens=options.max_new_tokens, batch_size=options.batch_size
        )
        return _Checked(ids, text, tuple(answers), tuple(judge_refusal(answer) for answer in answers))

    losses: list[float] = []
    stopped: Literal["complied", "steps", "interrupted"] = "steps"
    best, lowest, news = (ids, text), inf, False
    leader = check(*best)
    try:
        with track(options.steps, "suffix") as advance:
            for step in range(1, options.steps + 1):
                gradient = token_gradient(model, places, ids, goals, usable, options.batch_size)
                tried = _substitutions(model, places, ids, usable, gradient, options, generator, chat)
                found = target_losses(model, places, [ids for ids, _ in tried], goals, options.batch_size)
                ids, text = tried[int(found.argmin())]
                losses.append(float(found.min()))
                if losses[-1] < lowest:
                    best, lowest, news = (ids, text), losses[-1], True
                advance(1)
                if news and (step % options.check_every == 0 or step == options.steps):
                    leader, news = _further(leader, check(*best)), False
                    if leader.complied == len(prompts):
                        stopped = "complied"
                        break
    except KeyboardInterrupt:
        stopped = "interrupted"
        leader = _further(leader, check(*best))
    return Suffix(
        leader.text,
        leader.ids,
        tuple(losses),
        tuple(prompts),
        tuple(targets),
        leader.answers,
        leader.verdicts,
        stopped,
        options,
        chat,
        str(model.cfg.model_name).rsplit("/", 1)[-1],
        model_fingerprint(model),
    )


@dataclass(frozen=True)
class _Checked:
    """A suffix and the model's answers with it."""

    ids: Tokens
    text: str
    answers: tuple[str, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def complied(self) -> int:
        return self.verdicts.count("compliance")


def _further(old: _Checked, new: _Checked) -> _Checked:
    """The one with more compliance; the new one, whose loss is lower, if they are equal."""
    return old if old.complied > new.complied else new


def token_gradient(
    model: TransformerBridge,
    places: Sequence[Frame],
    suffix: Tokens,
    goals: Sequence[Tokens],
    vocabulary: Tensor,
    batch_size: int | None = None,
) -> Float[Tensor, "token vocab"]:
    """First-order change of the loss with the weight of each token at each place of the suffix.

    This is the gradient with respect to one-hot tokens. Since the embedding is a lookup, it equals the gradient with
    respect to the embedding's output times every token's embedding.

    Args:
        model: A `TransformerBridge`.
        places: Tokens around the suffix, one per prompt.
        suffix: Its tokens.
        goals: Tokens of the targets, one per prompt.
        vocabulary: The tokens to evaluate.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> token_gradient(model, frames(model, ["hi"]), (5, 6), [(7,)], torch.arange(10)).shape
        torch.Size([2, 10])
    """
    rows = [[*p.before, *suffix, *p.after, *goal] for p, goal in zip(places, goals, strict=True)]
    embedding = model.original_model.get_input_embeddings()
    watched: list[Tensor] = []

    def watch(module: torch.nn.Module, args: Any, output: Tensor) -> Tensor:
        watched.append(output.detach().requires_grad_())
        return watched[-1]

    total: Any = 0
    with torch.inference_mode(False), torch.enable_grad():
        for batch in batches(model, rows, batch_size, n_logits=max(map(len, goals)) + 1):
            watched.clear()
            handle = embedding.register_forward_hook(watch)
            try:
                loss = _losses(model, batch, [len(goals[row]) for row in batch.rows]).sum() / len(rows)
            finally:
                handle.remove()
            (gradient,) = torch.autograd.grad(loss, watched[0])
            for row, some in zip(batch.rows, gradient, strict=True):
                end = len(some) - len(goals[row]) - len(places[row].after)
                total = total + some[end - len(suffix) : end].float()
    with torch.inference_mode():
        chunks = torch.split(vocabulary.to(total.device), _CHUNK)
        return torch.cat([total @ embedding(ids[None])[0].to(total).T for ids in chunks], dim=1)


def target_losses(
    model: TransformerBridge,
    places: Sequence[Frame],
    suffixes: Sequence[Tokens],
    goals: Sequence[Tokens],
    batch_size: int | None = None,
) -> Float[Tensor, " suffix"]:
    """Negative log-likelihood of the targets for each suffix, in nats per token, mean over prompts.

    Args:
        model: A `TransformerBridge`.
        places: Tokens around the suffix, one per prompt.
        suffixes: Token sequences.
        goals: Tokens of the targets, one per prompt.
        batch_size: Rows per forward pass. Default: by memory, at most 32.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> target_losses(model, frames(model, ["hi"]), [(5, 6), (7, 8)], [(9,)]).shape
        torch.Size([2])
    """
    rows = [[*p.before, *suffix, *p.after, *goal] for suffix in suffixes for p, goal in zip(places, goals, strict=True)]
    found = torch.empty(len(rows))
    with torch.inference_mode():
        for batch in batches(model, rows, batch_size, n_logits=max(map(len, goals)) + 1):
            lengths = [len(goals[row % len(goals)]) for row in batch.rows]
            found[list(batch.rows)] = _losses(model, batch, lengths).cpu()
    return found.view(len(suffixes), len(places)).mean(1)


def _losses(model: TransformerBridge, batch: TokenBatch, lengths: Sequence[int]) -> Float[Tensor, " batch"]:
    """Mean negative log-likelihood of each row's last tokens."""
    kept = max(lengths) + 1
    logits = last_logits(model, batch, kept)[:, :-1].float()
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.ids[:, 1 - kept :], reduction="none")
    length = torch.tensor(lengths, device=nats.device)[:, None]
    counted = torch.arange(kept - 1, device=nats.device) >= kept - 1 - length
    return (nats * counted).sum(1) / length[:, 0]


def _start(
    model: TransformerBridge, places: Sequence[Frame], text: str, usable: Tensor, chat: ChatFormat
) -> tuple[Tokens, str]:
    """The tokens of a suffix given as text."""
    first = places[0]
    row = tokenize(model, [first.prompt + text], chat)[0]
    ids = tuple(row[len(first.before) : len(row) - len(first.after)])
    survived = surviving_texts(model, places, [ids] * len(places), chat)
    if not ids or not set(ids) <= set(usable.tolist()) or set(survived) != {text}:
        raise CosmicError(
            f"start: {text!r} has special tokens, tokens that merge, or no space before it; give plain text that begins "
            "with a space"
        )
    return ids, text


def _substitutions(
    model: TransformerBridge,
    places: Sequence[Frame],
    suffix: Tokens,
    usable: Tensor,
    gradient: Tensor,
    options: SuffixOptions,
    generator: torch.Generator,
    chat: ChatFormat,
) -> list[tuple[Tokens, str]]:
    """Distinct substitutions of one token by one of the steepest, as tokens and text, that survive after every
    prompt.
    """
    steepest = usable[(-gradient).topk(min(options.top_k, len(usable)), dim=1).indices.cpu()]
    for _ in range(_TRIES):
        where = torch.randint(len(suffix), (options.n_candidates,), generator=generator)
        which = torch.randint(steepest.shape[1], (options.n_candidates,), generator=generator)
        swapped = torch.tensor(suffix).repeat(options.n_candidates, 1)
        swapped[torch.arange(options.n_candidates), where] = steepest[where, which]
        some: dict[Tokens, str] = {tuple(row): "" for row in swapped.tolist() if tuple(row) != suffix}
        for place in places:
            texts = surviving_texts(model, [place] * len(some), list(some), chat) if some else []
            some = {ids: text for ids, text in zip(some, texts, strict=True) if text is not None}
        if some:
            return list(some.items())
    raise CosmicError("suffix: no substitution survives a round trip as text; raise top_k, or set ascii_only=False")
