"""Write an edit in another tool's format."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmic_tl._util.border import checked
from cosmic_tl._util.files import writing
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError, one_of
from cosmic_tl.export.formats import Format, Verdict, describe, kind_of
from cosmic_tl.export.names import FORMATS
from cosmic_tl.interventions.edits import EVERYWHERE, Ablation, Addition, AffineEdit, Edit, check_interventions
from cosmic_tl.model.components import check_additive
from cosmic_tl.model.load import TransformerBridge


@checked
@dataclass(frozen=True, eq=False)
class Exported:
    """An edit in another tool's format."""

    edit: Edit
    to: str
    """The format."""
    path: Path
    verdict: Verdict
    """Whether it is the same edit there."""
    about: dict[str, Any]
    """What the file says of itself."""

    def __repr__(self) -> str:
        why = f": {self.verdict.why}" if self.verdict.why else ""
        return f"Exported({kind_of(self.edit)} to {self.to}, {self.verdict.status}{why}, {str(self.path)!r})"


@checked
def export_edit(
    model: TransformerBridge,
    edit: Edit | Direction,
    to: str,
    out: str | Path,
    *,
    contrast: str = "",
    overwrite: bool = False,
) -> Exported:
    """Write an edit so that another tool applies it.

    Args:
        model: The model that the edit belongs to; not changed.
        edit: An edit. A direction stands for the first of ablation, ACE with α = 0, and addition with α = 1 that the format can
            carry exactly, or else approximately.
        to: Name of the format (`format_table`).
        out: File or folder to write; the folder around it must exist.
        contrast: Name of the contrast set that the direction was found with, for the file's own description.
        overwrite: Whether to replace what an earlier export wrote. Default False.

    Raises:
        CosmicError: If the format cannot carry the edit (the message names one that can), the edit does not fit the model, or
            the file is there or cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from cosmic_tl import AffineEdit, load_model
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_edit(load_model("demo", device="cpu"), AffineEdit(direction, 0.0), "steer.py", f"{folder}/steer.py")
        Exported(AffineEdit to steer.py, exact, '...steer.py')
    """
    one_of("to", to, FORMATS)
    form, out = FORMATS[to], Path(out)
    chosen = edit if isinstance(edit, Edit) else natural_edit(form, edit)
    check_interventions(model, [chosen])
    verdict = check_carried(form, chosen, model)
    if chosen.place == EVERYWHERE:
        check_additive(model)
    files = form.files(out)
    there = [one for one in files if one.exists()]
    if there and (not overwrite or len(there) < len(files)):
        what = (
            "give another path, or overwrite it"
            if len(there) == len(files)
            else "no earlier export wrote it; give another path"
        )
        raise CosmicError(f"out: {str(there[0])!r} exists; {what}")
    about = describe(model, chosen, contrast)
    with writing(out), _whole(files):
        form.write(model, chosen, out, about)
    return Exported(chosen, to, out, verdict, about)


@contextmanager
def _whole(files: Sequence[Path]) -> Iterator[None]:
    """Write several files together or not at all; folders see to that themselves.

    The first, which is what people use, goes away meanwhile, so that a stop never leaves it beside another edit's second.
    """
    before = {one: one.read_bytes() for one in files if one.is_file()}
    if before:
        files[0].unlink()
    try:
        yield
    except BaseException:
        for one in files:
            if one.is_file():
                one.unlink()
        for one, content in before.items():
            one.write_bytes(content)
        raise


def natural_edit(form: Format, direction: Direction) -> Edit:
    """The edit that a direction stands for in a format.

    Example:
        >>> import torch
        >>> natural_edit(FORMATS["lm-eval"], Direction(torch.ones(4), None, 1, -1))
        Ablation(direction=Direction(difference-in-means, layer 1, position -1, norm 2, any model), tokens='all')
    """
    choices: list[Edit] = [Ablation(direction), Addition(direction)]
    if direction.reference is not None:
        choices.insert(1, AffineEdit(direction, 0.0))
    order = ("exact", "approximate", "impossible")
    return min(choices, key=lambda edit: order.index(form.verdict(edit).status))


def check_carried(form: Format, edit: Edit, model: TransformerBridge | None = None) -> Verdict:
    """Check that a format can carry an edit, of some model or at all.

    Returns:
        The verdict, exact or approximate.

    Raises:
        CosmicError: If not; it names the nearest format that can.

    Example:
        >>> import torch
        >>> from cosmic_tl.interventions import SubspaceAblation
        >>> check_carried(FORMATS["lm-eval"], Addition(Direction(torch.ones(4), None, 1, -1), tokens="prompt"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: tokens: lm-eval edits all tokens, found 'prompt'; use the format steer.py
    """

    def scoped(one: Format) -> bool:
        return isinstance(edit.tokens, str) and edit.tokens in one.scopes

    verdict = _verdict(form, edit, model)
    if verdict.status != "impossible" and scoped(form):
        if (part := getattr(edit, "part", "stream")) != "stream":
            raise CosmicError(f"part: {form.name} edits the stream, found {part!r}; use `steering` in Python")
        return verdict
    able = [one for one in FORMATS.values() if _verdict(one, edit, model).status == "exact"]
    best = [one.name for one in able if scoped(one)]
    if verdict.status == "impossible":
        instead = f"use the format {best[0] if best else able[0].name}" if able else "no format can"
        raise CosmicError(f"edit: {form.name} cannot carry {kind_of(edit)} ({verdict.why}); {instead}")
    found = repr(edit.tokens) if isinstance(edit.tokens, str) else "a mask"
    instead = f"use the format {best[0]}" if best else "use `steering` in Python"
    raise CosmicError(f"tokens: {form.name} edits all tokens, found {found}; {instead}")


def _verdict(form: Format, edit: Edit, model: TransformerBridge | None) -> Verdict:
    return form.verdict(edit) if model is None else form.verdict_on(model, edit)
