"""A local model as judge: a guard model, or any chat model that follows a rubric."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cosmic_tl._util.border import checked
from cosmic_tl.errors import check_count
from cosmic_tl.generation.completions import complete
from cosmic_tl.judges.base import Judgement
from cosmic_tl.judges.templates import JudgeTemplate, judge_with
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.fingerprint import model_fingerprint
from cosmic_tl.model.load import TransformerBridge, model_label


@checked
@dataclass(frozen=True, eq=False)
class ModelJudge:
    """Judge with a local model, by its greedy answers to a template's question.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.judges.templates import LLAMA_GUARD_3
        >>> judge = ModelJudge(load_model("demo", device="cpu"), LLAMA_GUARD_3)  # in earnest: a Llama Guard 3 checkpoint
        >>> [found.parsed for found in judge(["hello", "hello"], ["Hello!", ""])]
        [False, True]
    """

    model: TransformerBridge
    """A `TransformerBridge` with a tokenizer, for example from `load_model`."""
    template: JudgeTemplate
    """`LLAMA_GUARD_3`, `STRONGREJECT`, or your own."""
    chat: ChatFormat = field(default_factory=ChatFormat)
    """The judge's chat format. Not used by a template that is already the whole prompt."""
    batch_size: int | None = None
    """Questions per batch; changes no verdict. By default as many as fit into memory, at most 128."""

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)

    @property
    def name(self) -> str:
        """What its verdicts depend on: model, template and formatting.

        Example:
            >>> from cosmic_tl import load_model
            >>> from cosmic_tl.judges.templates import LLAMA_GUARD_3
            >>> ModelJudge(load_model("demo", device="cpu"), LLAMA_GUARD_3).name.startswith("demo")
            True
        """
        return f"{model_label(self.model)} ({model_fingerprint(self.model)}), {self.template.label}, {self.chat}"

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[Judgement]:
        """One judgement per completion, in order.

        Raises:
            CosmicError: If the lists differ in length, or a question does not fit the judge's context.
        """
        return judge_with(self.template, prompts, completions, self._ask)

    def _ask(self, pairs: list[tuple[str, str]]) -> list[str]:
        return complete(
            self.model,
            [self.template.fill(*pair, self.model.tokenizer) for pair in pairs],
            chat=ChatFormat(use_template=False) if self.template.whole else self.chat,
            max_new_tokens=self.template.max_new_tokens,
            batch_size=self.batch_size,
            label=f"judging, {self.template.name}",
        )
