"""Addition as a change of one bias: that of the MLP below the layer."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from cosmic_tl.export.checkpoint_format import WeightFormat
from cosmic_tl.export.formats import Verdict
from cosmic_tl.export.weight_edits import bias_below, edit_bias
from cosmic_tl.interventions.edits import Edit
from cosmic_tl.model.components import Writer
from cosmic_tl.model.load import TransformerBridge


class BiasFormat(WeightFormat):
    """A checkpoint that differs from the original one in a single bias (Arditi et al. 2024, appendix I.1).

    The MLP of block l − 1 is the last thing that is added to the stream before block l, so a vector that is added to its bias is
    added to what enters block l, and nothing else reads it. Only some architectures have that bias, such as GPT-2 and GPT-NeoX.
    """

    name = "bias"
    title = "a Hugging Face checkpoint with one bias changed"
    carries: ClassVar[Mapping[str, Verdict]] = {"Addition": Verdict("exact", where="with a bias")}
    first_layer = 1
    otherwise = Verdict("impossible", "a bias adds the same vector to everything")

    def verdict_on(self, model: TransformerBridge, edit: Edit) -> Verdict:
        """Whether the block below has such a bias."""
        found, layer = self.verdict(edit), edit.place[0]
        if found.status == "impossible":
            return found
        if bias_below(model, layer) is None:
            return Verdict(
                "impossible",
                f"the MLP of block {layer - 1} of {type(model.original_model).__name__} has no output bias",
            )
        return Verdict("exact")

    def edited(self, model: TransformerBridge, edit: Edit) -> Sequence[Writer]:
        """The bias below the layer."""
        found = bias_below(model, edit.place[0])
        return [] if found is None else [found]

    def change(self, model: TransformerBridge, edit: Edit) -> str:
        """Add the vector to the bias."""
        vector = edit.map.offset.double() @ edit.map.left.double()
        return f"The vector was added to `{edit_bias(model, edit.place[0], vector)}`."
