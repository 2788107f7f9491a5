"""What a selection returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pandas as pd
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.interventions.edits import Intervention
from cosmic_tl.interventions.modes import Edits
from cosmic_tl.interventions.options import Mode, as_mode
from cosmic_tl.model.positions import Positions
from cosmic_tl.selection.generators import GeneratorChoices, generator_choices
from cosmic_tl.selection.plan import Plan
from cosmic_tl.selection.stability import Stability

if TYPE_CHECKING:
    from cosmic_tl.metrics.refusal_score import RefusalTokens
    from cosmic_tl.selection.null import Null


@checked
@dataclass(frozen=True, eq=False)
class Selection(Result):
    """A chosen direction, and everything the choice rests on."""

    direction: Direction
    table: pd.DataFrame
    """One row per candidate: position, layer, s_comply, s_refuse, score, kl (mean over prompts), kl_median, kl_max,
    kl_max_prompt (which of the negative validation prompts that were used, from 0), not_needed, share_comply, share_refuse,
    kept, reason. `not_needed` names what was not computed because the choice does not depend on it (all of it is with
    `full_table`); a candidate counts as kept as long as nothing that was computed drops it."""
    filters: pd.DataFrame
    """One row per filter: name, taken, taken_alone, best_score among the taken, nearest and farthest value from the limit among
    those that it alone took, option that admits them."""
    notes: tuple[str, ...]
    """Properties of the data and of the margin: close candidates, a prompt that decides alone, prompts that the unedited
    model does not treat as their side says."""
    warnings: tuple[str, ...]
    """Why the result must not be used."""
    evaluation_layers: tuple[int, ...]
    """Layers whose activations were compared; empty if none were."""
    layer_similarity: Float64[Tensor, " layer"]
    """Cosine between the two classes' mean `y[l, -1]` on training prompts."""
    positions: Positions
    candidates: Candidates
    method: str
    """Name of the procedure that chose."""
    measures: Mapping[str, str]
    """Columns of the table that hold scores, and what they are called."""
    basis: str
    """What the chosen candidate reaches, in a sentence."""
    caption: str
    """How to read the scores, in sentences."""
    edits: Edits
    """How this selection removes and induces a direction, its own or a placebo."""
    clean: Mapping[str, float] = field(default_factory=dict)
    """The scores' zero points: what they are with no intervention."""
    tokens: "RefusalTokens | None" = None
    """The refusal tokens, where the choice rests on them."""
    plan: Plan | None = None
    """The passes that were made and skipped, where the procedure plans them."""
    stability: Stability | None = None
    """How sure the choice is; None where that is not known: for a candidate that was asked for, after successive halving, from
    scores without products, with fewer than 2 or more than 300 validation prompts per side, or without resamples."""
    centre: Float64[Tensor, "layer d_model"] | None = None
    """What is taken off at the evaluation layers, for the target "centred"."""
    generator: str = ""
    """Which of several generators' candidates it chose from; "" where they were given without a name."""
    rivals: "Mapping[str, Selection]" = field(default_factory=dict)
    """The other generators' own choices, by name."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Generators none of whose candidates the filters leave, and why."""
    null: "Null | None" = None
    """The choice beside directions without the concept (`measure_null`); None where that was not measured."""

    @property
    def mode(self) -> Mode:
        """The mode of its edits: "linear" or "affine".

        Example:
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
            >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
            >>> select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options).mode
            'affine'
        """
        return self.edits.mode

    @property
    def alpha(self) -> float:
        """Strength of the induction that the candidates were scored by.

        Example:
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
            >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
            >>> select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options).alpha
            1.0
        """
        return self.edits.alpha

    def removal(self) -> Intervention:
        """The edit that takes the concept out, in the mode that the candidates were scored in.

        Example:
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
            >>> options = CosmicOptions(mode="linear", n_train=8, n_val=4, n_positions=1, max_kl=50.0)
            >>> selection = select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options)
            >>> type(selection.removal()).__name__
            'Ablation'
        """
        return self.edits.removal(self.direction)

    def induction(self, alpha: float | None = None) -> Intervention:
        """The edit that puts the concept in, in the mode that the candidates were scored in.

        Args:
            alpha: Strength. Defaults to the one that the candidates were scored by.

        Example:
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
            >>> options = CosmicOptions(alpha=0.5, n_train=8, n_val=4, n_positions=1, max_kl=10.0)
            >>> selection = select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options)
            >>> selection.induction().alpha, selection.induction(2.0).alpha
            (0.5, 2.0)
        """
        return self.edits.induction(self.direction, alpha)

    @property
    def generators(self) -> GeneratorChoices | None:
        """What each of several generators chooses, side by side; None if there was one alone.

        Example:
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
            >>> options = CosmicOptions(directions=("dim", "pca"), n_train=8, n_val=4, n_positions=1, max_kl=10.0)
            >>> selection = select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options)
            >>> selection.generators.table.generator.iloc[0] == selection.generator
            True
        """
        return generator_choices(self)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Warnings, then notes, each called what it is.

        Example:
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
            >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, evaluation_layers=(0,), max_kl=10.0)
            >>> select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options).remarks
            ('Warning: Removal with the chosen direction covers only ...', ...)
        """
        return (*(f"Warning: {one}" for one in self.warnings), *(f"Note: {one}" for one in self.notes))

    @property
    def winner(self) -> "pd.Series[float]":
        """The chosen row of the table.

        Example:
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
            >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
            >>> selection = select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options)
            >>> bool(selection.winner.kept), int(selection.winner.position)
            (True, -1)
        """
        d = self.direction
        return self.table[(self.table.layer == d.layer) & (self.table.position == d.position)].iloc[0]

    def top(self, n: int = 10) -> pd.DataFrame:
        """The `n` best candidates by score, filtered ones included.

        Example:
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
            >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
            >>> selection = select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options)
            >>> selection.top(3).score.is_monotonic_decreasing
            True
        """
        check_count("n", n)
        return self.table.sort_values("score", ascending=False).head(n).reset_index(drop=True)

    @property
    def column(self) -> str:
        """What was chosen at its layer: a token position, or the name of a direction that was given.

        Example:
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
            >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
            >>> select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options).column
            'position -1'
        """
        position = self.direction.position
        return repr(self.candidates.names[position]) if self.candidates.names else f"position {position}"

    def __repr__(self) -> str:
        counted = {name: int(self.table[name].notna().sum()) for name in ("kl", "induce") if name in self.table}
        lines = [
            f"Selection({self.method}, {self.mode}): layer {self.direction.layer}, {self.column}"
            + ("" if self.edits == Edits(self.mode) else f"; induction with {self.edits.induced}"),
            f"  {self.basis}",
            f"  {int((~self.table.kept).sum())} of {len(self.table)} candidates dropped; "
            + ", ".join(f"{name} computed for {n}" for name, n in counted.items())
            + ("; evaluation layers " + ", ".join(map(str, self.evaluation_layers)) if self.evaluation_layers else ""),
        ]
        if (among := self.generators) is not None:
            lines.append(f"  {among.said()}")
        lines += [
            f"  {f['filter']} took {f.taken}"
            + (f" (best score {f.best_score:.3f})" if f.best_score == f.best_score else "")
            for _, f in self.filters[self.filters.taken > 0].iterrows()
        ]
        return "\n".join([*lines, *(f"  {remark}" for remark in self.remarks)])

    def _lines(self) -> list[str]:
        return repr(self).splitlines()

    def _shown(self) -> pd.DataFrame:
        top = self.top()
        tokens = [repr(self.positions.labels[position]) for position in top.position]
        shown = top[["layer", "position", *self.measures, "kept", "reason"]]
        shown.insert(2, "token", tokens)
        return shown.assign(kept=shown.kept.map({True: "✓", False: ""}))


def direction_and_edits(
    chosen: Selection | Direction, mode: Mode | None = None, alpha: float | None = None
) -> tuple[Direction, Edits]:
    """The direction that was chosen, and how it is removed and induced.

    Args:
        chosen: A selection, which knows its mode and strength, or a direction, which does not.
        mode: "linear" or "affine"; needed with a direction.
        alpha: Strength of the induction. Defaults to the selection's, or to 1 for a direction.

    Raises:
        CosmicError: If a direction comes without a mode, or a selection with another mode than its own.

    Example:
        >>> import torch
        >>> direction_and_edits(Direction(torch.ones(4), torch.zeros(4), 1, -1))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: mode: a direction does not know how it was chosen; pass the Selection, or ...
    """
    if isinstance(chosen, Selection):
        if mode is not None and as_mode(mode) != chosen.mode:
            raise CosmicError(
                f"mode: found {mode!r}, and the selection was made in {chosen.mode!r}; leave mode out, or pass "
                "selection.direction with the mode"
            )
        return chosen.direction, chosen.edits if alpha is None else replace(chosen.edits, alpha=alpha)
    if mode is None:
        raise CosmicError(
            "mode: a direction does not know how it was chosen; pass the Selection, or mode='linear' or mode='affine'"
        )
    return chosen, Edits(mode, 1.0 if alpha is None else alpha)
