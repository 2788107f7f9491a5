"""Edits that are changes of weights, as an edited checkpoint: ablation everywhere, and any affine map at layer 0."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError
from cosmic_tl.export.cards import edited_card
from cosmic_tl.export.checkpoint import hub_name, write_checkpoint
from cosmic_tl.export.folder import check_folder
from cosmic_tl.export.formats import EXACT, IN_OTHER_ARITHMETIC, Format, Logits, Verdict, kind_of
from cosmic_tl.export.weight_edits import edit_embeddings, unchanged
from cosmic_tl.interventions.edits import EVERYWHERE, Edit
from cosmic_tl.interventions.orthogonalize import orthogonalize_weights
from cosmic_tl.model.components import Writer, contributions
from cosmic_tl.model.load import TransformerBridge

AFTER_NORMS = Verdict(
    "approximate",
    "norms after attention and MLP change the length of what is left; nothing is written along the direction",
)
AT_THE_START = Verdict("exact", where="layer 0")
HIGHER_UP = Verdict("impossible", "a single-layer edit above 0 is no change of the weights that write to the stream")


class WeightFormat(Format):
    """A checkpoint whose weights were edited, for plain `transformers` and all that read its checkpoints."""

    file = "edited"
    reader = "transformers"
    precision = IN_OTHER_ARITHMETIC

    def write(self, model: TransformerBridge, edit: Edit, path: Path, about: Mapping[str, Any]) -> None:
        """Write the checkpoint; the model is as before afterwards, bit for bit."""
        check_folder("out", path, overwrite=True)
        verdict, base = self.verdict_on(model, edit), hub_name(model)
        with unchanged(model, self.edited(model, edit)):
            what = self.change(model, edit)
            write_checkpoint(model, path, edited_card(about, base, verdict, what))

    @abstractmethod
    def edited(self, model: TransformerBridge, edit: Edit) -> Sequence[Writer]:
        """The parameters that `change` edits in place."""

    @abstractmethod
    def change(self, model: TransformerBridge, edit: Edit) -> str:
        """Edit the weights in place, and say in a sentence what was done.

        Raises:
            CosmicError: If the edited weights would not do what the edit does.
        """

    @contextmanager
    def applied(self, path: Path, model: TransformerBridge) -> Iterator[Logits]:
        """Load the folder with plain `transformers`."""
        inner = model.original_model
        try:
            loaded = type(inner).from_pretrained(path, dtype=inner.dtype, attn_implementation="eager")
        except (OSError, ValueError) as error:
            raise CosmicError(f"file: {str(path)!r} is no checkpoint of this model; export it again") from error
        loaded = loaded.eval().to(inner.device)
        yield lambda ids, _: loaded(ids).logits


class CheckpointFormat(WeightFormat):
    """Orthogonalized weights for ablation, edited embeddings for an edit of what enters the first block."""

    name = "checkpoint"
    title = "a Hugging Face checkpoint with edited weights"
    carries: ClassVar[Mapping[str, Verdict]] = dict.fromkeys(
        ("Ablation", "AffineEverywhere", "SubspaceAblation"), EXACT
    )
    otherwise = AT_THE_START

    def verdict(self, edit: Edit | str) -> Verdict:
        """Whether it can carry an edit: at layer 0, of a single layer."""
        found = super().verdict(edit)
        if isinstance(edit, str) or not found.where:
            return found
        return EXACT if edit.place[0] == 0 else HIGHER_UP

    def verdict_on(self, model: TransformerBridge, edit: Edit) -> Verdict:
        """Whether norms after attention and MLP stand between the edited matrices and the stream."""
        found = self.verdict(edit)
        everywhere = found.status == "exact" and edit.place == EVERYWHERE
        return AFTER_NORMS if everywhere and passes_norms(model) else found

    def edited(self, model: TransformerBridge, edit: Edit) -> Sequence[Writer]:
        """Everything that writes to the stream, or the embedding tables."""
        found = contributions(model) if edit.place == EVERYWHERE else contributions(model)[:1]
        return [writer for one in found for writer in one.writers]

    def change(self, model: TransformerBridge, edit: Edit) -> str:
        """Remove one direction after the other from all that writes to the stream, or edit the embeddings."""
        if edit.place != EVERYWHERE:
            tables = edit_embeddings(model, edit.map)
            return f"The edit was made in {' and '.join(f'`{one}`' for one in tables)}; the unembedding is the original one."
        approximate = passes_norms(model)
        for unit in edit.map.left:
            direction = Direction(unit.float(), None, layer=0, position=-1, method=kind_of(edit))
            orthogonalize_weights(model, direction, approximate=approximate)
        formula = (
            "`W' = W − (r̂/g)(g ⊙ r̂)ᵀ W`, with `g` the gain of the norm after it,"
            if approximate
            else "`W' = W − r̂ r̂ᵀ W`"
        )
        constant = ""
        if edit.map.offset.any():  # the rest of the model writes nothing along it
            edit_embeddings(model, edit.map)
            constant = " What enters the stream was set to a constant along it, in the embeddings."
        removed = "a direction was" if len(edit.map.left) == 1 else f"{len(edit.map.left)} orthogonal directions were"
        said = f"From every matrix that writes to the stream {removed} removed: {formula}"
        return f"{said} (Arditi et al. 2024, section 2.4).{constant}"


def passes_norms(model: TransformerBridge) -> bool:
    """Whether what attention or MLP write passes a norm before it is added to the stream (Gemma 2 and 3, OLMo 2).

    Example:
        >>> from cosmic_tl import load_model
        >>> passes_norms(load_model("demo", device="cpu"))
        False
    """
    return any(one.gain is not None for one in contributions(model))
