"""The command that takes an edit elsewhere."""

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cosmic_tl._util.progress import LOADING, stage
from cosmic_tl.cli.derive import Only, derived
from cosmic_tl.cli.options import RunOptions
from cosmic_tl.cli.output import print_frame, say
from cosmic_tl.errors import CosmicError, one_of
from cosmic_tl.runs.settings import RunSettings

if TYPE_CHECKING:
    from cosmic_tl.directions.direction import Direction
    from cosmic_tl.interventions.edits import Edit
    from cosmic_tl.interventions.modes import Edits
    from cosmic_tl.model.load import TransformerBridge

Chosen = Literal["removal", "induction", "addition", "ablation", "affine", "affine-everywhere"]
_CHECKED = RunSettings(n_test=2, max_new_tokens=16)


@dataclass(frozen=True, kw_only=True)
class SomeRun(RunOptions):
    """A finished run, or none."""

    directory: Path | None = field(default=None, metadata={"positional": True})  # type: ignore[assignment]
    """Directory that `cosmic-tl run` wrote."""

    def __post_init__(self) -> None:
        if self.directory is not None:
            super().__post_init__()


def _edit(chosen: Chosen, alpha: float | None, edits: "Edits", direction: "Direction") -> "Edit":
    from cosmic_tl.interventions.edits import Ablation, Addition, AffineEdit
    from cosmic_tl.interventions.everywhere import AffineEverywhere

    if alpha is not None and chosen in ("removal", "ablation"):
        raise CosmicError(f"alpha: found {alpha:g}, and the edit {chosen!r} has no strength; leave it out")
    if chosen == "removal":
        return edits.removal(direction)
    if chosen == "induction":
        return edits.induction(direction, alpha)
    if chosen == "ablation":
        return Ablation(direction)
    strength = 1.0 if alpha is None else alpha
    if chosen == "addition":
        return Addition(direction, strength)
    return AffineEdit(direction, strength) if chosen == "affine" else AffineEverywhere(direction, strength)


def _carried(bridge: "TransformerBridge", edit: "Edit", chosen: Chosen) -> str:
    """Which formats can carry an edit of a model, in a sentence for each status."""
    from cosmic_tl.export.formats import kind_of
    from cosmic_tl.export.names import FORMATS

    names: dict[str, list[str]] = {"exact": [], "approximate": []}
    for name, form in FORMATS.items():
        if (found := form.verdict_on(bridge, edit)).status in names and edit.tokens in form.scopes:
            names[found.status].append(name)
    layer, _ = edit.place
    where = "everywhere" if layer < 0 else f"at layer {layer}"
    said = "; ".join(f"{status}: {', '.join(some)}" for status, some in names.items() if some)
    return f"The run's edit ({chosen}: {kind_of(edit)} {where}) goes to {said}"


@derived(LOADING, "file", "check")
def export(
    source: SomeRun,
    settings: Annotated[RunSettings, Only(("n_test", "max_new_tokens"))] = _CHECKED,
    *,
    to: str | None = None,
    out: Path | None = None,
    edit: Chosen = "removal",
    alpha: float | None = None,
    check: bool = False,
    list: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a run's edit in another tool's format, and show that it does the same there.

    Args:
        to: Format, such as steer.py or lm-eval; --list names all of them.
        out: File or folder to write.
        edit: The run's removal or its induction; or with its direction addition, ablation, affine (at its layer) or
            affine-everywhere.
        alpha: Strength. By default the run's own for its induction, and otherwise 1.
        check: Run what was exported in its own reader, on the run's test prompts, and compare logits and greedy completions with
            the same edit here; an error if they differ.
        list: Only print which format can carry which edit, and with a run those that can carry its edit on its model.
        overwrite: Replace what an earlier export wrote.
    """
    if list:
        from cosmic_tl.export.names import format_table

        table = format_table()
        shown = table.pivot(index="format", columns="edit", values="status").loc[table.format.unique()]
        limits = table[table["where"] != ""].groupby("format")["where"].first()
        print_frame(shown.assign(**{"edits of one layer": limits}).fillna("").reset_index())
        if source.directory is not None:
            bridge, direction = source.load()
            say(_carried(bridge, _edit(edit, alpha, source.run.selection.edits, direction), edit))
        return
    if source.directory is None or to is None or out is None:
        raise CosmicError(
            "export: a run, --to and --out belong together; give all of them, as in cosmic-tl export RUN --to steer.py --out "
            "steer.py, or --list"
        )
    from cosmic_tl.export.exporting import check_carried, export_edit
    from cosmic_tl.export.names import FORMATS

    one_of("to", to, FORMATS)
    run = source.run
    chosen = _edit(edit, alpha, run.selection.edits, run.direction)
    check_carried(FORMATS[to], chosen)
    prompts = [*chain(*run.test_prompts(settings.n_test))]
    bridge, _ = source.load()
    stage("file")
    exported = export_edit(bridge, chosen, to, out, contrast=run.identity["prompts"]["name"], overwrite=overwrite)
    say(exported)
    if not check:
        return
    from cosmic_tl.export.checking import check_export

    stage("check")
    found = check_export(bridge, exported, prompts, chat=run.settings.chat, max_new_tokens=settings.max_new_tokens)
    if not found.passed:
        raise CosmicError(f"check: {found.sentence}; do not use {str(out)!r}")
    say(found)


COMMANDS = (export,)
