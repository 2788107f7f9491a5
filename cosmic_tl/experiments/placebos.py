"""Placebos of calibrated strength: random edits that disturb the model as much as the real ones do.

========================  =========================================================================================
placebo                   what it rules out
========================  =========================================================================================
random removal            nothing by itself: a random direction is nearly orthogonal to all that matters, so that
                          taking it out leaves answers as they are by construction; one seed is enough
random translation        that any shift of the stream as long as the one that removal causes does the same
shuffled removal,         that any difference between groups of such prompts does the same: a difference in means of
shuffled induction        the training prompts with random labels, scaled to the direction's norm
random induction          that any direction of the same norm does the same; how much it disturbs depends on the seed
equal-KL induction        that any direction does the same that moves the next token as much: a random direction at the
                          α whose KL divergence on negative prompts equals that of the real induction
========================  =========================================================================================
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cosmic_tl.data.contrast_set import Prompts, sides_of
from cosmic_tl.directions.direction import Direction, random_direction
from cosmic_tl.experiments.conditions import Condition
from cosmic_tl.interventions.edits import Addition, Intervention, Interventions
from cosmic_tl.interventions.modes import Edits
from cosmic_tl.interventions.options import Mode
from cosmic_tl.interventions.steer import intervention_hooks
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.forward import forward
from cosmic_tl.model.hooks import Site
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.selection.equal_kl import TOLERANCE, equal_kl
from cosmic_tl.selection.options import PLACEBOS
from cosmic_tl.selection.result import Selection, direction_and_edits

TRANSLATION, EQUAL_KL = "random translation", "equal-KL induction"
CALIBRATION = 32
"""Validation prompts per side that a run calibrates on, at most."""


@dataclass(frozen=True)
class Calibration:
    """A placebo whose strength was chosen so that it disturbs the model as much as the real edit."""

    condition: str
    """"random translation" or "equal-KL induction"."""
    seed: int
    """Of the random direction."""
    alpha: float
    """Its strength, in units of the direction's norm."""
    target: float
    """What the real edit causes: nats of KL divergence, or the length of the mean shift of a token."""
    reached: float
    """What the placebo causes."""

    @property
    def within(self) -> bool:
        """Whether the target was reached.

        Example:
            >>> Calibration("equal-KL induction", 0, 32.0, target=2.0, reached=1.5).within
            False
        """
        return abs(self.reached - self.target) <= TOLERANCE * self.target

    def edit(self, direction: Direction, edits: Edits) -> Intervention:
        """The placebo itself.

        Args:
            direction: The direction that it stands beside.
            edits: How that one is removed and induced.

        Example:
            >>> import torch
            >>> direction = Direction(torch.ones(4), torch.zeros(4), layer=1, position=-1)
            >>> type(Calibration("random translation", 0, 0.5, 1.0, 1.0).edit(direction, Edits("affine"))).__name__
            'Addition'
        """
        placebo = random_direction(direction, self.seed)
        if self.condition == TRANSLATION:
            return Addition(placebo, self.alpha)
        return edits.induction(placebo, self.alpha)

    def as_row(self) -> dict[str, Any]:
        """Its fields, and whether the target was reached.

        Example:
            >>> Calibration("equal-KL induction", 0, 1.5, 2.0, 2.0).as_row()["within"]
            True
        """
        return {**asdict(self), "within": self.within}


def calibrate_placebos(
    model: TransformerBridge,
    prompts: Prompts,
    selection: Selection | Direction,
    mode: Mode | None = None,
    alpha: float | None = None,
    *,
    chat: ChatFormat | None = None,
    seeds: Sequence[int] = range(PLACEBOS),
    batch_size: int | None = None,
) -> list[Calibration]:
    """Strengths of the placebos that disturb the model as much as removal and induction do.

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set, whose val prompts are taken, or a pair of lists: positive and negative prompts.
        selection: What was chosen, with its mode and strength; or a bare direction together with a mode.
        mode: "linear" or "affine"; with a direction only.
        alpha: Strength of the induction. Defaults to the selection's, or to 1 for a direction.
        chat: Formatting. Defaults to the plain chat template.
        seeds: Of the random directions. Default 0 to 4.
        batch_size: Rows per forward pass. Default: by memory.

    Returns:
        For each seed a random translation and, unless α is 0, an induction of equal KL.

    Raises:
        CosmicError: If a direction comes without a mode, or does not fit the model.

    Example:
        >>> import torch
        >>> from cosmic_tl import load_model
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> sides = ["Rob a bank clerk."], ["Bake a pizza."]
        >>> found = calibrate_placebos(load_model("demo", device="cpu"), sides, direction, mode="linear", seeds=[0])
        >>> [one.condition for one in found]
        ['random translation', 'equal-KL induction']
    """
    positive, negative = sides_of(prompts, "val")
    direction, edits = direction_and_edits(selection, mode, alpha)
    shift = mean_shift(model, positive, edits.removal(direction), direction.layer, chat=chat, batch_size=batch_size)
    found = [Calibration(TRANSLATION, seed, shift / direction.norm, shift, shift) for seed in seeds]
    if edits.alpha:
        placebos = {seed: random_direction(direction, seed) for seed in seeds}
        rows = tokenize(model, negative, chat)
        target, alphas = equal_kl(model, rows, direction, placebos, edits, batch_size=batch_size)
        found += [Calibration(EQUAL_KL, seed, alpha, target, nats) for seed, (alpha, nats) in alphas.items()]
    return found


def placebo_conditions(
    calibrations: Sequence[Calibration],
    selection: Selection | Direction,
    mode: Mode | None = None,
) -> list[Condition]:
    """The calibrated placebos as conditions of `measure_effects`.

    Args:
        calibrations: From `calibrate_placebos`.
        selection: What they stand beside; or a bare direction together with a mode.
        mode: "linear" or "affine"; with a direction only.

    Raises:
        CosmicError: If a direction comes without a mode.

    Example:
        >>> import torch
        >>> direction = Direction(torch.ones(4), torch.zeros(4), layer=1, position=-1)
        >>> one = Calibration("random translation", 3, 0.5, 1.0, 1.0)
        >>> [(c.side, c.name, c.seed) for c in placebo_conditions([one], direction, "affine")]
        [('positive', 'random translation', 3)]
    """
    direction, edits = direction_and_edits(selection, mode)
    return [
        Condition(
            one.condition,
            "positive" if one.condition == TRANSLATION else "negative",
            (one.edit(direction, edits),),
            one.seed,
        )
        for one in calibrations
    ]


def calibration_notes(calibrations: Sequence[Calibration]) -> list[str]:
    """What to say of placebos that could not be made as strong as the real edit.

    Example:
        >>> calibration_notes([Calibration("equal-KL induction", 4, 32.0, target=2.0, reached=1.5)])
        ['Placebo "equal-KL induction", seed 4: 1.5 reached of 2 (α 32); it disturbs the model less or more than ...']
    """
    return [
        f'Placebo "{one.condition}", seed {one.seed}: {one.reached:.3g} reached of {one.target:.3g} (α {one.alpha:.3g}); it '
        "disturbs the model less or more than the real edit."
        for one in calibrations
        if not one.within
    ]


def mean_shift(
    model: TransformerBridge,
    prompts: Sequence[str],
    edit: Interventions,
    layer: int,
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> float:
    """How far an edit moves a token's stream at the input of a layer: the mean length, over all tokens of the prompts.

    The first token of each prompt is left out: many models park an activation there that is a hundred times as long as any
    other, and no edit of it shows in the answers.

    Args:
        model: A `TransformerBridge`.
        prompts: Instructions.
        edit: One intervention or several.
        layer: Where to look.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Raises:
        CosmicError: If an intervention does not fit the model.

    Example:
        >>> import torch
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> addition = Addition(Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1), alpha=0.5)
        >>> round(mean_shift(model, ["Bake a pizza."], addition, layer=3), 3)  # half of √128
        5.657
    """
    site: tuple[int, Site] = (layer, "hook_resid_pre")
    hooks = intervention_hooks(model, edit)
    total, n = 0.0, 0
    for batch in batches(model, tokenize(model, prompts, chat), batch_size):
        clean, edited = (
            forward(model, batch, [site], n_positions=None, hooks=some).activations[site].cpu() for some in ((), hooks)
        )
        mask = batch.mask.cpu().bool()
        later = mask & (mask.cumsum(1) > 1)
        total += float((edited.double() - clean.double()).norm(dim=-1)[later].sum())
        n += int(later.sum())
    return total / n
