"""What a suffix is made on: prompts that can be attacked, and the model's own compliant answers."""

from collections.abc import Sequence
from typing import Any

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.generation.completions import complete
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.judges.substring import judge_refusal
from cosmic_tl.model.batching import BATCH_SIZE
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.load import TransformerBridge


@checked
def compliant_targets(
    model: TransformerBridge,
    prompts: Sequence[str],
    interventions: Interventions,
    *,
    chat: ChatFormat | None = None,
    n_tokens: int = 16,
    batch_size: int | None = None,
) -> list[str]:
    """The beginnings of the model's own answers when it does not refuse, as targets for `find_suffix`.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompts: Instructions that the model refuses.
        interventions: Edits that keep it from refusing, such as removal of the refusal direction.
        chat: Formatting. Defaults to the plain chat template.
        n_tokens: Maximum length of a target in tokens. Default 16.
        batch_size: Prompts per batch. Default: by memory, at most 32.

    Raises:
        CosmicError: If a prompt is still refused.

    Example:
        >>> from cosmic_tl import load_model
        >>> compliant_targets(load_model("demo", device="cpu"), ["Bake a pizza."], (), n_tokens=4)
        ['Of course. If']
    """
    check_count("n_tokens", n_tokens)
    tokenizer: Any = model.tokenizer
    answers = complete(model, prompts, interventions, chat=chat, batch_size=batch_size, label="targets")
    for prompt, answer in zip(prompts, answers, strict=True):
        if judge_refusal(answer) != "compliance":
            raise CosmicError(
                f"targets: the steered model does not comply with {prompt[:60]!r}; leave the prompt out or use another "
                "direction"
            )
    rows = tokenizer(answers, add_special_tokens=False)["input_ids"]
    return [tokenizer.decode(row[:n_tokens], clean_up_tokenization_spaces=False) for row in rows]


@checked
def attackable_prompts(
    model: TransformerBridge,
    prompts: Sequence[str],
    interventions: Interventions,
    *,
    n: int = 4,
    chat: ChatFormat | None = None,
    max_new_tokens: int = 32,
    batch_size: int | None = None,
) -> list[str]:
    """The first prompts that the model refuses and, when steered, complies with: prompts on which a suffix can be
    searched.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompts: Instructions to choose from.
        interventions: Edits that keep the model from refusing, such as removal of the refusal direction.
        n: Number of prompts. Default 4.
        chat: Formatting. Defaults to the plain chat template.
        max_new_tokens: Maximum number of new tokens. Default 32.
        batch_size: Prompts per batch. Default: by memory, at most 32.

    Raises:
        CosmicError: If there are fewer.

    Example:
        >>> from cosmic_tl import load_model
        >>> attackable_prompts(load_model("demo", device="cpu"), ["Bake a pizza."], (), n=1)
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: n_prompts: found 1, and the model refuses 0 of 1 prompts that it complies with when ...
    """
    check_count("n", n)
    found: list[str] = []
    size = batch_size or BATCH_SIZE
    for start in range(0, len(prompts), size):
        some = prompts[start : start + size]
        plain, steered = (
            [
                judge_refusal(answer)
                for answer in complete(
                    model, some, edit, chat=chat, max_new_tokens=max_new_tokens, batch_size=batch_size, label=label
                )
            ]
            for edit, label in (((), "choosing prompts"), (interventions, "choosing prompts, steered"))
        )
        found += [one for one, *pair in zip(some, plain, steered, strict=True) if pair == ["refusal", "compliance"]]
        if len(found) >= n:
            return found[:n]
    raise CosmicError(
        f"n_prompts: found {n}, and the model refuses {len(found)} of {len(prompts)} prompts that it complies with when "
        "steered; ask for fewer, or use another direction"
    )
