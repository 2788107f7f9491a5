"""Options of a selection, with the papers' values as defaults; the command line is derived from them."""

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Literal, get_args

from cosmic_tl._util.border import checked
from cosmic_tl.directions.names import check_generators
from cosmic_tl.errors import CosmicError, check_alpha, check_count, one_of
from cosmic_tl.interventions.options import InductionTokens, Mode, as_mode, check_induction

if TYPE_CHECKING:
    from cosmic_tl.interventions.modes import Edits

Cell = tuple[int, int]
"""A candidate: layer and position."""
PLACEBOS = 5
"""Default number of placebos of each kind. One says little, because they differ widely."""
LayerRule = Literal["causal", "opposite-signs", "resampled"]
"""How evaluation layers are picked, if not where the classes differ most."""
Target = Literal["mean", "concatenated", "per-prompt", "centred"]
"""What the activations of steered prompts are compared with."""


@dataclass(frozen=True)
class CommonOptions:
    """Options that every selection procedure has."""

    mode: Mode = "affine"
    """How the direction is removed and induced. "linear": by directional ablation and by addition. "affine": both by affine
    concept editing (ACE) at the direction's layer; "ace" is accepted for it."""
    alpha: float = 1.0
    """Strength of the induction, in units of the direction."""
    induction_layer: int | None = None
    """Layer at whose input induction adds the direction; by default the direction's own. In linear mode only, because
    ACE's reference belongs to the layer where it was measured."""
    induction_tokens: InductionTokens = "all"
    """Tokens that induction edits. "all": every token, as in the papers. "prompt": only those of the prompt, so that the
    unedited model writes the answer; scores are the same either way."""
    directions: tuple[str, ...] = ("dim",)
    """Ways to make the candidates, such as dim,pca,lat,probe: difference in means (dim), first principal component (pca; of pairs
    paired-pca), linear artificial tomography (lat), weight of a logistic regression (probe), whitened difference (lda), what
    LEACE reads (leace), difference orthogonal to the reference (projected), or between robust centres (winsorized, median).
    Filters apply within each, and the highest score of all is chosen."""
    cell: Cell | None = None
    """Choose this candidate (layer and position, such as 17,-1), whatever the filters say. By default the scores decide.
    Others are then scored only if the full table is asked for."""
    tokens: tuple[str, ...] | None = None
    """Text that an answer with the concept begins with (for refusal: "I'm sorry"); its first token is used. By default
    such tokens are found in the model's own answers."""
    filter_prompts: bool = False
    """Leave out training and validation prompts that the model does not treat as their side says: positive ones with a
    refusal score (log-odds of the tokens) below 0, negative ones with a score above 0."""
    max_kl: float = 0.1
    """Drop candidates whose removal changes the next-token distribution on negative prompts by more than this KL
    divergence (in nats, mean over prompts)."""
    max_layer_share: float = 0.8
    """Drop candidates from this share of the model's depth onwards."""
    n_positions: int | None = None
    """Number of positions, counted from the end of the prompt; by default every token after the instruction."""
    n_train: int = 180
    """Training prompts per side."""
    n_val: int = 100
    """Validation prompts per side."""
    full_table: bool = False
    """Compute every score and KL divergence, including those on which the choice does not depend."""
    n_resamples: int = 1000
    """How often the validation prompts are drawn again, to say how sure the choice is (`Selection.stability`); 0 for not at
    all. Scores need no further passes for it, but other candidates that win do for what filters look at: their KL, by refusal
    tokens also their induction, and late layers where COSMIC's rule on position −1 hangs on them. Takes 2 to 300 validation
    prompts per side, because COSMIC's memory grows with the square of their number: 0.2 MB per candidate for 100."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", as_mode(self.mode))
        check_alpha("alpha", self.alpha)
        object.__setattr__(self, "directions", check_generators(self.directions))
        if not isfinite(least := getattr(self, "min_induce", 0.0)):
            raise CosmicError(f"min_induce: expected a finite number, found {least}; pass a float")
        for name in ("evaluation_share", "max_layer_share"):
            if not 0 < (value := getattr(self, name, 1.0)) <= 1:
                raise CosmicError(f"{name}: expected a share above 0 and at most 1, found {value}")
        for name in ("n_train", "n_val"):
            check_count(name, getattr(self, name))
        if self.n_resamples:
            check_count("n_resamples", self.n_resamples)
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


@checked
@dataclass(frozen=True)
class CosmicOptions(CommonOptions):
    """Options of a COSMIC selection (Siu et al. 2025)."""

    evaluation_layers: tuple[int, ...] | LayerRule | None = None
    """Layers at which activations are compared, such as 3,4, or a rule. By default those where the two sides differ most.
    causal: where exchanging the concept at the last token changes the refusal score most, which looks at outputs.
    opposite-signs: where the origin lies between the two sides. resampled: most often among those where they differ most, over
    resamples of the training prompts."""
    evaluation_share: float = 0.1
    """Share of the layers at which activations are compared, at least one layer."""
    exclude_first_half: bool = False
    """Compare only at layers of the second half; the paper does so for weakly aligned models."""
    target: Target = "mean"
    """How the last-token activations of several prompts and evaluation layers become one cosine similarity. "mean" (the
    released code): averaged over both. "concatenated": averaged over prompts, with the layers side by side. "per-prompt":
    averaged over layers, one cosine per prompt with the other side's mean, and the mean of those. "centred": as "mean", without
    what both classes share: the mean of their training means is taken off first, so that cosines range from −1 to 1 and not
    from just below 1."""
    last_position_rule: bool = True
    """At position -1, drop layers later than both medians of the other positions' best layers."""
    successive_halving: bool = False
    """Approximate and faster: drop the worse half of the candidates after an eighth, a quarter and a half of the
    validation prompts. The scores of those that remain are exact."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.evaluation_layers, str):
            one_of("evaluation_layers", self.evaluation_layers, get_args(LayerRule))
        elif self.evaluation_layers is not None:  # a set of layers: order and repetition mean nothing
            object.__setattr__(self, "evaluation_layers", tuple(sorted(set(self.evaluation_layers))))
        one_of("target", self.target, get_args(Target))

    @property
    def named_layers(self) -> tuple[int, ...] | None:
        """The evaluation layers, unless a rule picks them.

        Example:
            >>> CosmicOptions(evaluation_layers=(4, 3)).named_layers, CosmicOptions(evaluation_layers="causal").named_layers
            ((3, 4), None)
        """
        return self.evaluation_layers if isinstance(self.evaluation_layers, tuple) else None


@checked
@dataclass(frozen=True)
class RefusalTokenOptions(CommonOptions):
    """Options of a selection by refusal tokens (Arditi et al. 2024)."""

    mode: Mode = "linear"
    """As in `CommonOptions`; the paper's procedure is linear."""
    filter_prompts: bool = True
    """As in `CommonOptions`; the paper filters."""
    n_train: int = 128
    """Training prompts per side."""
    n_val: int = 32
    """Validation prompts per side."""
    min_induce: float = 0.0
    """Drop candidates whose induction does not raise the refusal score on negative prompts above this."""


PROCEDURES: dict[str, type[CosmicOptions] | type[RefusalTokenOptions]] = {
    "cosmic": CosmicOptions,
    "refusal-tokens": RefusalTokenOptions,
}
"""What `--select` and the `select` of a study choose from."""
