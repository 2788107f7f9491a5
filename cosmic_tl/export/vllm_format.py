"""What the formats for vLLM have in common: they edit what a block gives, so that layer l is the output of block l − 1."""

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
    first_layer = 1

    def verdict_on(self, model: TransformerBridge, edit: Edit) -> Verdict:
        """Whether the reader finds the model's blocks."""
        found = self.verdict(edit)
        if found.status == "impossible":
            return found
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
