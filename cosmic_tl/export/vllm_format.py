"""What the formats for vLLM have in common: they edit what a block gives, so that layer l is the output of block l − 1."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

from cosmic_tl.errors import CosmicError
from cosmic_tl.export.formats import Format, Logits, Verdict
from cosmic_tl.export.places import module_places
from cosmic_tl.interventions.edits import Edit
from cosmic_tl.model.load import TransformerBridge


class VllmFormat(Format):
    """A format that a plugin or fork of vLLM reads."""

    blocks: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of blocks among which the reader finds its blocks; empty for any."""
    first: ClassVar[bool] = False
    """Whether it can edit what enters the first block."""

    def verdict_on(self, model: TransformerBridge, edit: Edit) -> Verdict:
        """Whether the reader finds the model's blocks, and edits before the first one."""
        found = self.verdict(edit)
        if found.status == "impossible":
            return found
        if edit.place[0] == 0 and not self.first:
            return Verdict("impossible", "it edits what blocks give, and none is below layer 0")
        [(name, _)] = module_places(model, [(0, "hook_resid_pre")])
        if self.blocks and not name.startswith(self.blocks):
            return Verdict(
                "impossible", f"{self.reader} looks for blocks at {self.blocks[0]}0, and here they are at {name}"
            )
        return Verdict(found.status, found.why)

    def applied(self, path: Path, model: TransformerBridge) -> AbstractContextManager[Logits]:
        """Not here."""
        raise CosmicError(
            f"reader: {self.reader} needs a GPU and vLLM; the file was checked against its loader's types and not run"
        )


def below(verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Verdicts on kinds of edits that hold from layer 1 on.

    Example:
        >>> below({"Addition": Verdict("exact")})["Addition"].where
        'layers from 1'
    """
    return {kind: Verdict(one.status, one.why, "layers from 1") for kind, one in verdicts.items()}
