"""What a format is, and what it says of each kind of edit."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor

from cosmic_tl._util.versions import versions
from cosmic_tl.interventions.edits import Edit
from cosmic_tl.model.fingerprint import model_fingerprint
from cosmic_tl.model.load import TransformerBridge, model_label

EDITS = ("Addition", "Ablation", "AffineEdit", "AffineEverywhere", "SubspaceAblation", "SubspaceEdit", "MapEdit")
"""The kinds of edits that formats tell apart."""
ONE_LAYER = ("Addition", "AffineEdit", "SubspaceEdit", "MapEdit")
"""Those that act at one layer; the others act at all of them."""
Status = Literal["exact", "approximate", "impossible"]
Logits = Callable[[Int[Tensor, "1 token"], int], Float[Tensor, "1 token vocab"]]
"""Token ids, and how many of them are the prompt, to logits."""
LICENCE = "A direction is made from a model's activations: that model's licence holds for its use, and its safety rules with it."


@dataclass(frozen=True)
class Verdict:
    """Whether a format can carry an edit."""

    status: Status
    why: str = ""
    """What stands in the way, or what differs."""
    where: str = ""
    """The layers that it holds for, said of a kind of edit; "" for all."""


EXACT = Verdict("exact")


IN_OTHER_ARITHMETIC = 1e-3
"""Precision of formats whose reader removes a direction by another arithmetic. Float32 itself holds no more where much of the
stream goes with it: ablating a direction of layer 1 of Qwen2.5-Coder-0.5B, hooks here are as far from float64."""


class Format(ABC):
    """A format that carries edits elsewhere: its writer, and the tool that reads it.

    A new format is a subclass in a file of its own, and a line in `cosmic_tl/export/names.py`.
    """

    name: ClassVar[str]
    """As on the command line."""
    title: ClassVar[str]
    """What it is, for people."""
    file: ClassVar[str]
    """Its usual file or folder name."""
    reader: ClassVar[str]
    """The tool that runs it."""
    carries: ClassVar[Mapping[str, Verdict]]
    """Kind of edit to verdict; a kind that is missing has the verdict of `otherwise`."""
    otherwise: ClassVar[Verdict] = Verdict("impossible")
    precision: ClassVar[float] = 1e-4
    """How far logits in its reader may be from those here, in float32."""
    first_layer: ClassVar[int] = 0
    """The first layer that it can edit alone; what blocks give enters the layer after them."""
    beside: ClassVar[str] = ""
    """Suffix of a second file beside it; empty for none."""
    scopes: ClassVar[tuple[str, ...]] = ("all",)
    """Token scopes that it can express."""

    def verdict(self, edit: Edit | str) -> Verdict:
        """Whether it can carry an edit, given as such or by its kind.

        Example:
            >>> from cosmic_tl.export.names import FORMATS
            >>> FORMATS["lm-eval"].verdict("AffineEdit").status
            'exact'
        """
        found = self.carries.get(edit if isinstance(edit, str) else kind_of(edit), self.otherwise)
        if isinstance(edit, str) or found.status == "impossible" or not 0 <= edit.place[0] < self.first_layer:
            return found
        return Verdict("impossible", f"it acts from layer {self.first_layer} on")

    def files(self, path: Path) -> tuple[Path, ...]:
        """What it writes for a path.

        Example:
            >>> from cosmic_tl.export.names import FORMATS
            >>> [one.name for one in FORMATS["steer.py"].files(Path("steer.py"))]
            ['steer.py', 'steer.safetensors']
        """
        return (path, path.with_suffix(self.beside)) if self.beside else (path,)

    def verdict_on(self, model: TransformerBridge, edit: Edit) -> Verdict:
        """Whether it can carry an edit of this model, where that depends on more than the edit.

        Example:
            >>> import torch
            >>> from cosmic_tl import Ablation, Direction, load_model
            >>> from cosmic_tl.export.names import FORMATS
            >>> edit = Ablation(Direction(torch.ones(128), None, 1, -1))
            >>> FORMATS["lm-eval"].verdict_on(load_model("demo", device="cpu"), edit).status
            'exact'
        """
        return self.verdict(edit)

    @abstractmethod
    def write(self, model: TransformerBridge, edit: Edit, path: Path, about: Mapping[str, Any]) -> None:
        """Write an edit that it can carry.

        Args:
            model: The model that the edit belongs to.
            edit: The edit, which fits the model.
            path: File or folder; what is there was written by an earlier export, and may be replaced.
            about: What is known of the edit, from `describe`; kept in the file, or beside it where the format has no room.

        Raises:
            CosmicError: If this edit has no place in the format on this model.
        """

    @abstractmethod
    def applied(self, path: Path, model: TransformerBridge) -> AbstractContextManager[Logits]:
        """The model with the exported thing applied by its own reader, as a function from token ids to logits.

        Raises:
            CosmicError: If the reader is not installed, or this format has none that runs here.
        """

    def unedited(self, model: TransformerBridge) -> AbstractContextManager[Logits] | None:
        """The model without an edit in the reader, if its arithmetic is another: with quantized weights, say.

        Logits then differ without any edit, and the check takes this for what they may differ by. Defaults to None: the reader
        computes what is computed here, up to rounding in float32.

        Example:
            >>> from cosmic_tl import load_model
            >>> from cosmic_tl.export.names import FORMATS
            >>> FORMATS["steer.py"].unedited(load_model("demo", device="cpu")) is None
            True
        """
        return None


def kind_of(edit: Edit) -> str:
    """The kind of an edit; edits of other classes are maps.

    Example:
        >>> import torch
        >>> from cosmic_tl import Ablation, Direction
        >>> kind_of(Ablation(Direction(torch.ones(4), None, 1, -1)))
        'Ablation'
    """
    name = type(edit).__name__
    return name if name in EDITS else "MapEdit"


def describe(model: TransformerBridge, edit: Edit, contrast: str = "") -> dict[str, Any]:
    """What every exported file says of itself.

    Args:
        model: The model.
        edit: The edit.
        contrast: Name of the contrast set that the direction was found with.

    Example:
        >>> import torch
        >>> from cosmic_tl import Addition, Direction, load_model
        >>> edit = Addition(Direction(torch.ones(128), None, 3, -1), alpha=2.0)
        >>> found = describe(load_model("demo", device="cpu"), edit, "refusal")
        >>> found["edit"], found["alpha"], found["layer"], found["contrast_set"]
        ('Addition', 2.0, 3, 'refusal')
    """
    found: dict[str, Any] = {"edit": type(edit).__name__}
    for name in ("alpha", "tokens"):
        if isinstance(value := getattr(edit, name, None), str | float | int):
            found[name] = value
    layer, _ = edit.place
    found["applied_at_layer"] = "all" if layer < 0 else layer
    source = getattr(edit, "direction", None) or getattr(edit, "subspace", None)
    for name in ("layer", "position", "method"):
        if (value := getattr(source, name, None)) is not None:
            found[name] = value
    return found | {
        "contrast_set": contrast,
        "model": model_label(model),
        "fingerprint": model_fingerprint(model),
        "versions": versions(),
        "licence": LICENCE,
    }
