"""Settings of a selection, with the papers' values as defaults; the command line takes its own from here."""

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Literal, get_args

from cosmic_tl.errors import CosmicError, one_of
from cosmic_tl.interventions.options import InductionTokens, Mode, check_induction

if TYPE_CHECKING:
    from cosmic_tl.interventions.modes import Edits

Cell = tuple[int, int]
"""A candidate: layer and position."""
PLACEBOS = 5
"""Placebos of each kind, by default: one says little, as they differ widely."""
Target = Literal["mean", "concatenated", "per-prompt"]
"""What steered activations are compared by."""


@dataclass(frozen=True)
class CommonOptions:
    """What every procedure takes."""

    mode: Mode = "affine"
    """"linear": remove by directional ablation, induce by addition. "affine": both by ACE at the source layer."""
    alpha: float = 1.0
    """Strength of the induction."""
    induction_layer: int | None = None
    """The layer at whose input induction adds the direction; None is the candidate's own. In linear mode only: ACE's reference
    belongs to the layer where it was taken."""
    induction_tokens: InductionTokens = "all"
    """Which tokens induction edits: all of them (as the papers do), or the prompt's alone, so that the unedited model writes the
    answer. Scores read the prompt's last token and are the same either way."""
    cell: Cell | None = None
    """Take this candidate (layer and position), whatever the filters say; others are scored with `full_table` only."""
    tokens: tuple[str, ...] | None = None
    """Texts whose first tokens show the concept in an answer (for refusal: "I'm sorry"); None finds them from the model's own
    answers."""
    filter_prompts: bool = False
    """Leave out training and validation prompts that the model does not treat as their side says: positive ones with a
    refusal score (the log-odds of the tokens) below 0, negative ones with a score above."""
    max_kl: float = 0.1
    """Most that removal may move the next-token distribution on negative prompts, in nats; the mean over prompts."""
    max_layer_share: float = 0.8
    """Source layers at or above this share of the depth are dropped."""
    n_positions: int | None = None
    """How many of the last positions; None is every post-instruction token."""
    n_train: int = 180
    """Training prompts per side."""
    n_val: int = 100
    """Validation prompts per side."""
    full_table: bool = False
    """Compute every score and KL, also those on which the choice does not depend."""

    def __post_init__(self) -> None:
        for name in ("alpha", "min_induce"):
            if not isfinite(value := getattr(self, name, 0.0)):
                raise CosmicError(f"{name}: expected a finite number, found {value}; pass a float")
        for name in ("evaluation_share", "max_layer_share"):
            if not 0 < (value := getattr(self, name, 1.0)) <= 1:
                raise CosmicError(f"{name}: expected a share above 0 and at most 1, found {value}")
        if not self.max_kl > 0:
            raise CosmicError(f"max_kl: expected a positive number, found {self.max_kl}")
        check_induction(self.mode, self.induction_layer, self.induction_tokens)

    @property
    def edits(self) -> "Edits":
        """How a direction is removed and induced under these settings.

        Example:
            >>> CosmicOptions(alpha=2.0).edits
            Edits(mode='affine', alpha=2.0, layer=None, tokens='all')
        """
        from cosmic_tl.interventions.modes import Edits  # imports torch, which these settings do without

        return Edits(self.mode, self.alpha, self.induction_layer, self.induction_tokens)


@dataclass(frozen=True)
class CosmicOptions(CommonOptions):
    """Settings of a COSMIC selection (Siu et al. 2025)."""

    evaluation_layers: tuple[int, ...] | None = None
    """Layers whose activations are compared; None ranks them by similarity of the classes."""
    evaluation_share: float = 0.1
    """Share of the layers that the ranking keeps, at least one."""
    exclude_first_half: bool = False
    """Rank only the second half of the layers (for weakly aligned models)."""
    target: Target = "mean"
    """How `y[l, -1]` of several prompts and evaluation layers becomes one cosine. "mean" (the released code): of the mean
    over both. "concatenated": of the mean over prompts of the layers put side by side. "per-prompt": each prompt's mean over
    layers has its own cosine to the other class's mean, and those are averaged."""
    last_position_rule: bool = True
    """At position −1 drop layers later than both medians of the other positions' best layers."""
    successive_halving: bool = False
    """Approximate: drop the worse half of the candidates on an eighth, a quarter and a half of the validation prompts;
    the finalists' scores are exact."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("target", self.target, get_args(Target))


@dataclass(frozen=True)
class RefusalTokenOptions(CommonOptions):
    """Settings of a selection by refusal tokens (Arditi et al. 2024)."""

    mode: Mode = "linear"
    """As in `CommonOptions`; that paper's is linear."""
    filter_prompts: bool = True
    """As in `CommonOptions`; that paper filters."""
    n_train: int = 128
    """Training prompts per side."""
    n_val: int = 32
    """Validation prompts per side."""
    min_induce: float = 0.0
    """Refusal score that induction has to exceed on negative prompts."""
