"""How an instruction becomes a prompt: the options, without imports that take seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cosmic_tl._util.border import checked
from cosmic_tl.errors import one_of


@checked
@dataclass(frozen=True)
class ChatFormat:
    """How an instruction becomes a prompt."""

    system: str | None = None
    """System prompt. If the chat template has no system role, it is put before the user's text."""
    prefix: str = ""
    """Text that every answer begins with."""
    thinking: Literal["close", "open"] = "close"
    """What to do with a thinking block that the template or the model opens. "close": close it at once, so that positions
    and judgements come after it. "open": leave the template as it is. A model counts as thinking if its template mentions
    it or if its own answer begins with a thinking tag; a tag in the vocabulary is not enough."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """Variables for the chat template, such as `enable_thinking=false`."""
    use_template: bool | None = None
    """Whether instructions go through the tokenizer's chat template. By default they do if it has one."""

    def __post_init__(self) -> None:
        one_of("thinking", self.thinking, ("close", "open"))
