"""Linear and affine mode: removal and induction in each, and ACE at all layers."""

from dataclasses import dataclass

from cosmic_tl._util.border import checked
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import check_alpha
from cosmic_tl.interventions.edits import Ablation, Addition, AffineEdit, Intervention
from cosmic_tl.interventions.options import InductionTokens, Mode, as_mode, check_induction
from cosmic_tl.model.hooks import Part, Scope


def removal(direction: Direction, mode: Mode) -> Intervention:
    """The intervention that takes the concept out.

    Raises:
        CosmicError: If the mode is unknown.

    Example:
        >>> import torch
        >>> type(removal(Direction(torch.ones(2), torch.ones(2), 0, -1), "linear")).__name__
        'Ablation'
    """
    return Ablation(direction) if as_mode(mode) == "linear" else AffineEdit(direction, alpha=0.0)


def induction(direction: Direction, mode: Mode, alpha: float = 1.0) -> Intervention:
    """The intervention that puts the concept in.

    Raises:
        CosmicError: If the mode is unknown.

    Example:
        >>> import torch
        >>> type(induction(Direction(torch.ones(2), torch.ones(2), 0, -1), "affine")).__name__
        'AffineEdit'
    """
    return Edits(mode, alpha).induction(direction)


@checked
@dataclass(frozen=True)
class Edits:
    """How directions are removed and induced, so that placebos are treated as the direction is."""

    mode: Mode
    alpha: float = 1.0
    """Strength of the induction."""
    layer: int | None = None
    """Layer at which induction adds the direction; None is the direction's own layer. Linear mode only."""
    tokens: InductionTokens = "all"
    """Which tokens induction edits."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", as_mode(self.mode))
        check_alpha("alpha", self.alpha)
        check_induction(self.mode, self.layer, self.tokens)

    @property
    def induced(self) -> str:
        """Strength and place of the induction, as text.

        Example:
            >>> Edits("affine").induced, Edits("linear", 1.5, 13, "prompt").induced
            ('α = 1', 'α = 1.5 at layer 13, on prompt tokens')
        """
        at = "" if self.layer is None else f" at layer {self.layer}"
        return f"α = {self.alpha:g}{at}" + (", on prompt tokens" if self.tokens == "prompt" else "")

    def removal(self, direction: Direction) -> Intervention:
        """The intervention that takes the concept out.

        Example:
            >>> import torch
            >>> type(Edits("linear").removal(Direction(torch.ones(2), torch.ones(2), 0, -1))).__name__
            'Ablation'
        """
        return removal(direction, self.mode)

    def induction(self, direction: Direction, alpha: float | None = None) -> Intervention:
        """The intervention that puts the concept in.

        Args:
            direction: The direction to induce.
            alpha: Strength. Defaults to `self.alpha`.

        Example:
            >>> import torch
            >>> edits = Edits("linear", alpha=2.0, layer=1, tokens="prompt")
            >>> edit = edits.induction(Direction(torch.ones(2), torch.ones(2), 3, -1))
            >>> edit.alpha, edit.layer, edit.tokens
            (2.0, 1, 'prompt')
        """
        strength = self.alpha if alpha is None else alpha
        if self.mode == "linear":
            return Addition(direction, strength, self.tokens, self.layer)
        return AffineEdit(direction, strength, self.tokens)


@checked
def affine_edits(
    candidates: Candidates, *, position: int = -1, alpha: float = 1.0, tokens: Scope = "all", part: Part = "stream"
) -> tuple[AffineEdit, ...]:
    """ACE at all layers, each with its own direction and reference (Marshall et al. 2025, section 3).

    Skips layers where the classes do not differ.

    Args:
        candidates: From `difference_in_means`; of the same part.
        position: Position of the directions, counted from the end. Default −1.
        alpha: Strength, the same at every layer.
        tokens: Which tokens are edited.
        part: The stream, or what each block adds to it.

    Raises:
        CosmicError: If the candidates do not have this position.

    Example:
        >>> from cosmic_tl import difference_in_means, load_model, mean_activations
        >>> model = load_model("demo", device="cpu")
        >>> means = [mean_activations(model, [text]) for text in ("Rob a bank clerk.", "Bake a pizza.")]
        >>> [edit.direction.layer for edit in affine_edits(difference_in_means(*means), alpha=0.0)]
        [1, 2, 3, 4, 5, 6, 7]
    """
    candidates.check(0, position)
    layers = [layer for layer in range(len(candidates.vectors)) if candidates.vectors[layer, position].any()]
    return tuple(AffineEdit(candidates.direction(layer, position), alpha, tokens, part=part) for layer in layers)
