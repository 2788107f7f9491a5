"""Scores above the null: what each candidate reaches beyond directions of shuffled labels at its own layer and position."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd
import torch

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import Positions
from cosmic_tl.selection.cosmic_scores import CosmicScorer
from cosmic_tl.selection.options import CosmicOptions
from cosmic_tl.selection.result import Selection
from cosmic_tl.selection.scores import undefined

SUM = "score"
SAME = 1e-4
"""Difference of two similarities that is rounding."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class NullGrid(Result):
    """What every candidate reaches beyond directions without the concept at the same place."""

    table: pd.DataFrame
    """One row per measure and candidate: measure ("s_comply", "s_refuse" or "score"), layer, position, observed (missing where
    the selection did not need it), null (mean over the shuffled-label directions there), sd (theirs; missing for a single one),
    and above (observed minus null)."""
    n: int
    """Shuffled-label directions per candidate."""
    layer: int
    position: int
    """Of the chosen candidate."""
    positions: Positions
    labels: Mapping[str, str]
    """Measure to what people are shown."""

    def _lines(self) -> list[str]:
        own = self.table[(self.table.layer == self.layer) & (self.table.position == self.position)].set_index("measure")
        return [
            f"NullGrid: layer {self.layer}, position {self.position} scores {own.above[SUM]:.3f} above the mean of {self.n} "
            "directions of shuffled labels there"
        ]


@checked
def measure_null_grid(
    model: TransformerBridge,
    prompts: ContrastSet,
    selection: Selection,
    options: CosmicOptions | None = None,
    *,
    n: int | None = None,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> NullGrid:
    """Score directions of shuffled labels at every layer and position, to see where the scores reflect the concept.

    Scores differ between layers for reasons that have nothing to do with the concept: the later an edit, the less of it the
    evaluation layers see, and some layers amplify whatever is added. Each candidate is therefore compared with differences in
    means of the same training prompts under shuffled labels, of equal norm and with a reference that lies as the real one's
    does, at the same place, on the same validation prompts. The map shows where the concept is; it is no test, since the
    candidates were chosen on these very prompts. `measure_null` is.

    Costs the passes of both scores, once per shuffled-label direction.

    Args:
        model: A `TransformerBridge`.
        prompts: The concept's contrast set; val scores the directions.
        selection: From `select_cosmic` on the same prompts, differences in means among its candidates.
        options: Those of the selection. Default the paper's.
        n: Shuffled-label directions per candidate. Default all that the selection has, five by default.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows (prompts times candidates) per forward pass. Default: by available memory.

    Raises:
        CosmicError: If the selection is not COSMIC's or has fewer shuffled-label directions, or the options are not its own.

    Example:
        >>> from cosmic_tl import load_model, load_prompts, select_cosmic
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
        >>> grid = measure_null_grid(model, prompts, select_cosmic(model, prompts, options), options, n=1)
        >>> len(grid.table), sorted(grid.table.measure.unique())  # three measures of eight candidates
        (24, ['s_comply', 's_refuse', 'score'])
    """
    options = options or CosmicOptions()
    if selection.method != "COSMIC":
        raise CosmicError(f"selection: it was made by {selection.method}; scores above the null are COSMIC's")
    if options.edits != selection.edits:
        raise CosmicError("options: they are not those of the selection; give the same mode, alpha and induction layer")
    for name in ("filter_prompts", "successive_halving"):
        if getattr(options, name):
            raise CosmicError(f"{name}: the null is scored on the same prompts at every place; leave it out")
    shuffled = selection.candidates.shuffled
    if n is not None:
        check_count("n", n)
    if not shuffled or (n or 1) > len(shuffled):
        raise CosmicError(
            f"n: found {n or 1}, and the selection has {len(shuffled)} directions of shuffled labels; make it with more `seeds`, "
            "and let it take its own means"
        )
    rows = [tokenize(model, side, chat) for side in prompts.sides("val", options.n_val)]
    seeds = list(shuffled)[:n]
    cells = [
        (layer, position)
        for layer in range(int(model.cfg.n_layers))
        for position in selection.positions.indices
        if not undefined(selection.candidates, (layer, position))
    ]
    measures, n_positions = CosmicScorer.measures[:2], len(selection.positions)
    # Side by side as further columns, so that directions of one layer share passes, and all of them the clean ones.
    placebos = [_of_equal_norm(selection.candidates, seed) for seed in seeds]
    side_by_side = replace(
        placebos[0],
        vectors=torch.cat([one.vectors for one in placebos], dim=1),
        references=torch.cat([one.references for one in placebos], dim=1),
    )
    layers, centre = selection.evaluation_layers, selection.centre
    scorer = CosmicScorer(model, rows[0], rows[1], side_by_side, layers, options, batch_size, {}, centre=centre)
    if abs(scorer.clean_similarity - selection.clean["similarity"]) > SAME:
        raise CosmicError(
            "options: without an edit the classes' similarity is not that of the selection; give its prompts, chat, n_val "
            "and target"
        )
    columns = {cell: [(cell[0], cell[1] - k * n_positions) for k in range(len(seeds))] for cell in cells}
    places = [place for some in columns.values() for place in some]
    scorer.compute_all(dict.fromkeys(measures, places))
    found = []
    for cell, some in columns.items():
        for place in some:
            values = [scorer.scores[(*place, measure)] for measure in measures]
            found += [
                (measure, *cell, value) for measure, value in zip((*measures, SUM), (*values, sum(values)), strict=True)
            ]
    null = pd.DataFrame(found, columns=["measure", "layer", "position", "value"])
    keys = ["measure", "layer", "position"]
    spread = null.groupby(keys).value.agg(null="mean", sd="std").reset_index()
    observed = selection.table.melt(["layer", "position"], [*measures, SUM], "measure", "observed")
    table = observed.merge(spread, on=keys, how="left")[[*keys, "observed", "null", "sd"]]
    labels = {name: selection.measures[name] for name in (*measures, SUM)}
    chosen = selection.direction
    return NullGrid(
        table.assign(above=table.observed - table.null),
        len(seeds),
        chosen.layer,
        chosen.position,
        selection.positions,
        labels,
    )


def _of_equal_norm(candidates: Candidates, seed: int) -> Candidates:
    """Shuffled-label directions as long as the real ones, with references half a length before the mean of both classes."""
    real, null = candidates.vectors, candidates.shuffled[seed]
    scaled = null * (real.norm(dim=-1) / null.norm(dim=-1))[..., None]
    references = candidates.references + (real - scaled) / 2
    return replace(candidates, vectors=scaled, references=references, shuffled={}, noise=None, spread=None)
