"""The checks, one function each."""

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from cosmic_tl.activations import mean_of_rows
from cosmic_tl.check.memory import NotPossible
from cosmic_tl.check.subject import (
    EXTRA_MEMORY,
    NEW_TOKENS,
    Edit,
    Found,
    Subject,
    apart,
    largest_difference,
    one_batch,
)
from cosmic_tl.generation.completions import complete
from cosmic_tl.interventions.edits import Ablation, AffineEdit
from cosmic_tl.interventions.options import Mode
from cosmic_tl.interventions.steer import steering
from cosmic_tl.model.batching import batches
from cosmic_tl.model.forward import next_token_logits, read
from cosmic_tl.selection.cosmic_scores import CosmicScorer
from cosmic_tl.selection.options import CosmicOptions
from cosmic_tl.selection.scores import Scores


def _positions(subject: Subject) -> Found:
    n, labels = len(subject.positions), subject.positions.labels
    ends = {tuple(row[-n:]) for rows in subject.rows for row in rows}
    text = " ".join(map(repr, labels))
    if not bool(subject.model.tokenizer.chat_template):
        return f"the last {n}; the tokenizer has no chat template", "", n > 0
    tokenizer = subject.model.tokenizer
    holds = all([tokenizer.decode([token]) for token in end] == list(labels) for end in ends)
    seen = "the same in all prompts" if len(ends) == 1 else f"{len(ends)} different ends"
    return f"{n} after the user's text, {text}: {seen}", "", holds and len(ends) == 1


def _logits(subject: Subject) -> Found:
    rows = subject.rows[0]
    batch = next(batches(subject.model, rows, len(rows)))
    found = next_token_logits(subject.model, batch)
    expected = subject.clean[0][2][list(batch.rows), 0, 0]
    return largest_difference(apart(found, expected), subject.relative, ", in a padded batch against each prompt alone")


def _means(subject: Subject) -> Found:
    found = mean_of_rows(
        subject.model, subject.rows[0], n_positions=len(subject.positions), batch_size=len(subject.rows[0])
    )
    before, after, _ = (x.mean(0) for x in subject.clean[0])
    return largest_difference(max(apart(found.resid_pre, before), apart(found.resid_post, after)), subject.relative)


@torch.inference_mode()
def _hidden_states(subject: Subject) -> Found:
    n, states = len(subject.positions), []
    for row in subject.rows[1]:
        found = subject.plain(subject.ids(row), output_hidden_states=True).hidden_states
        if len(found) != subject.n_layers + 1:
            raise NotPossible(f"{type(subject.plain).__name__} returns {len(found)} hidden states")
        states.append(torch.stack([h[0, -n:].cpu().double() for h in found[:-1]]))  # the last is after the final norm
    means = mean_of_rows(subject.model, subject.rows[1], n_positions=n, batch_size=len(states))
    return largest_difference(apart(means.resid_pre, torch.stack(states).mean(0)), subject.relative)


def _scores(mode: Mode) -> Callable[[Subject], Found]:
    def check(subject: Subject) -> Found:
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


def _plain_scores(subject: Subject, mode: Mode) -> Mapping[tuple[int, int, str], float]:
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


def _ablation(subject: Subject) -> Found:
    direction = subject.candidates.direction(*subject.cells[-1])
    unit = direction.unit.double()
    left = 0.0
    with steering(subject.model, Ablation(direction)):
        found = read(subject.model, one_batch(subject), [(i, "hook_resid_post") for i in range(subject.n_layers)])
    for y in found.values():
        vectors = y.cpu().double()
        left = max(left, float(((vectors @ unit).abs() / vectors.norm(dim=-1)).max()))
    allowed = subject.relative
    return f"{left:.1e} of the stream's norm is left along an ablated direction", f"{allowed:g}", left <= allowed


def _restoration(subject: Subject) -> Found:
    batch = one_batch(subject)
    direction = subject.candidates.direction(*subject.cells[-1])
    before = next_token_logits(subject.model, batch)
    moved = 0.0
    try:
        with steering(subject.model, AffineEdit(direction, alpha=1.0)):
            moved = apart(next_token_logits(subject.model, batch), before)
            raise KeyboardInterrupt  # as when a user stops in the middle
    except KeyboardInterrupt:
        after = next_token_logits(subject.model, batch)
    same = bool((after == before).all())
    what = "the same bit for bit" if same else f"changed by {apart(after, before):.1e}"
    return f"an edit moves the logits by {moved:.0%}; after it they are {what}", "", same and moved > 0


@torch.inference_mode()
def _generation(subject: Subject) -> Found:
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
def _steered_generation(subject: Subject) -> Found:
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


def _memory(subject: Subject) -> Found:
    extra = subject.memory.extra()
    weights = sum(p.numel() * p.element_size() for p in subject.model.original_model.parameters()) / 1e9
    return (
        f"at most {extra:.2f} GB beyond the loaded model, whose weights take {weights:.2f} GB",
        f"{EXTRA_MEMORY:g} GB",
        extra <= EXTRA_MEMORY,
    )


@torch.inference_mode()
def _speed(subject: Subject) -> Found:
    batch = one_batch(subject)

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


CHECKS: Mapping[str, Callable[[Subject], Found]] = {
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
