"""A bridge as a language model of the Language Model Evaluation Harness (`lm_eval`), with or without interventions."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.generation.completions import check_cache
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.interventions.steer import intervention_hooks, steering
from cosmic_tl.metrics.likelihood import continuation_logits
from cosmic_tl.model.batching import BATCH_SIZE, masks_padding
from cosmic_tl.model.chat import ChatFormat, render, uses_template
from cosmic_tl.model.load import TransformerBridge

try:
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise CosmicError("lm_eval: it is not installed; run pip install 'cosmic_tl[capability]'") from error

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""A key for lm-eval's cache (None for a window of rolled text), the context's tokens and the continuation's."""


class BridgeLM(HFLM):  # type: ignore[misc]
    """Any bridge under any interventions, for `lm_eval.evaluate` and `lm_eval.simple_evaluate`.

    Tokenization, rolling windows and stop sequences are lm-eval's own (`HFLM`), so that scores compare with published
    ones; the passes and the chat format are this package's. For token scopes, the context is prompt, what is generated or
    scored after it is completion, and rolled text is prompt; lm-eval counts white space at a context's end to what follows.

    Example:
        >>> from lm_eval.api.instance import Instance
        >>> from cosmic_tl import load_model
        >>> lm = BridgeLM(load_model("demo", device="cpu"))
        >>> asked = lm.apply_chat_template([{"role": "user", "content": "hello"}])
        >>> requests = [Instance("loglikelihood", {}, (asked, text), i) for i, text in enumerate(["Hello!", "Goodbye"])]
        >>> hello, goodbye = (log_prob for log_prob, _ in lm.loglikelihood(requests))
        >>> hello - goodbye > 5
        True
    """

    @checked
    def __init__(
        self,
        model: TransformerBridge,
        interventions: Interventions = (),
        batch_size: int | None = None,
        chat: ChatFormat | None = None,
    ) -> None:
        """Wrap a bridge; nothing of it is changed.

        Args:
            model: A `TransformerBridge` with a tokenizer.
            interventions: Steering. Default none.
            batch_size: Rows per forward pass. Default: by memory, at most 32.
            chat: How `apply_chat_template` formats; default plain.

        Raises:
            CosmicError: If an intervention does not fit the model, it has no tokenizer, or `batch_size` is not positive.
        """
        if model.tokenizer is None:
            raise CosmicError("model: it has no tokenizer; boot it with tokenizer=…")
        check_count("batch_size", batch_size)
        intervention_hooks(model, interventions)
        self.bridge, self.interventions, self.chat = model, interventions, chat or ChatFormat()
        self.rows_per_pass = batch_size
        inner = model.original_model
        super().__init__(
            # Not the model itself, whose weights HFLM would tie, also where an edit has untied them.
            pretrained=SimpleNamespace(device=inner.device, config=inner.config, generate=inner.generate),
            backend="causal",
            tokenizer=deepcopy(model.tokenizer),  # HFLM gives it a padding token
            max_length=int(model.cfg.n_ctx),
            batch_size=(batch_size or BATCH_SIZE) if masks_padding(model) else 1,  # of generation
            trust_remote_code=False,
        )

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is the greedy one."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-probability of each text, in windows of the model's context."""
        found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """A completion of each context, up to its stop sequences."""
        found: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        # Continuations that differ in their last token alone, such as the letters of choices, share a row.
        rows: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for i, (_, context, continuation) in enumerate(requests):
            kept = context[-max(self.max_length + 1 - len(continuation), 1) :]
            rows.setdefault((tuple(kept), tuple(continuation[:-1])), []).append(i)
        members = list(rows.values())
        found = [(float("nan"), False)] * len(requests)
        for row, logits in continuation_logits(
            self.bridge,
            [context for context, _ in rows],
            [requests[some[0]][2] for some in members],
            self.interventions,
            batch_size=self.rows_per_pass,
            plain_text=all(key is None for key, _, _ in requests),
            label="lm-eval likelihoods",
        ):
            log_probs = logits.log_softmax(-1)
            for i in members[row]:
                key, _, continuation = requests[i]
                target = torch.tensor(continuation, device=logits.device)
                greedy = bool((log_probs.argmax(-1) == target).all())
                found[i] = float(log_probs.gather(1, target[:, None]).cpu().double().sum()), greedy
                if key is not None:
                    self.cache_hook.add_partial("loglikelihood", key, found[i])
        return found

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        check_cache(self.bridge)
        with torch.inference_mode(), steering(self.bridge, self.interventions, prompt_length=context.shape[1]):
            tokens: Tensor = super()._model_generate(context, max_length, stop, **options)
        return tokens

    def apply_chat_template(self, chat_history: Iterable[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model will see it, its thinking block closed, the answer's prefix in place.

        Raises:
            CosmicError: If the tokenizer has no chat template, or it rejects the conversation.
        """
        if not uses_template(self.bridge, replace(self.chat, use_template=None)):
            raise CosmicError("chat: the tokenizer has no chat template; pass chat=False or set one")
        history = [dict(message) for message in chat_history]
        system = history[0]["content"] if history and history[0]["role"] == "system" else None
        try:
            text = self._render(history, add_generation_prompt)
            merge = system is not None and system.strip() not in text
        except TemplateError as error:
            if system is None:
                raise CosmicError(f"chat: the template rejects the conversation ({error}); pass chat=False") from error
            merge = True
        if merge:  # the template has no system role
            first = {"role": "user", "content": f"{system}\n\n{history[1]['content']}"}
            text = self._render([first, *history[2:]], add_generation_prompt)
        return text + self._suffix() if add_generation_prompt else text

    def _render(self, history: list[dict[str, str]], add_generation_prompt: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self._options(),
        )
        return text

    def _options(self) -> dict[str, Any]:
        closed = {"enable_thinking": False} if self.chat.thinking == "close" else {}
        return {**closed, **self.chat.template_options}

    def _suffix(self) -> str:
        """What the chat format puts after the template's text."""
        bare = replace(self.chat, thinking="open", prefix="", template_options=self._options())
        return render(self.bridge, ["x"], self.chat)[0].removeprefix(render(self.bridge, ["x"], bare)[0])
