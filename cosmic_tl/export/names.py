"""The formats that edits are exported to, by name, and the table of what each can carry."""

from collections.abc import Mapping

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl.export.bias import BiasFormat
from cosmic_tl.export.checkpoint_format import CheckpointFormat
from cosmic_tl.export.control_vector import ControlVector
from cosmic_tl.export.easysteer import EasySteer
from cosmic_tl.export.formats import EDITS, ONE_LAYER, Format
from cosmic_tl.export.glp import Glp
from cosmic_tl.export.lm_eval_steered import LmEvalSteered
from cosmic_tl.export.lora import PeftLora
from cosmic_tl.export.steer_script import SteerScript
from cosmic_tl.export.steering_vectors import SteeringVectors
from cosmic_tl.export.svec import Svec
from cosmic_tl.export.vllm_hook import VllmHook
from cosmic_tl.export.vllm_lens import VllmLens

_ALL: tuple[Format, ...] = (
    SteerScript(),
    LmEvalSteered(),
    PeftLora(),
    CheckpointFormat(),
    BiasFormat(),
    ControlVector(),
    Glp(),
    SteeringVectors(),
    Svec(),
    VllmLens(),
    EasySteer(),
    VllmHook(),
)
FORMATS: Mapping[str, Format] = {one.name: one for one in _ALL}
"""Name to format. Where one cannot carry an edit, the first of them that can is named."""


@checked
def format_table() -> pd.DataFrame:
    """One row per format and kind of edit: whether the edit goes there exactly, and if not, why.

    Returns:
        Columns format, edit, status (exact, approximate or impossible), why, and where ("" where it holds for every layer).

    Example:
        >>> table = format_table()
        >>> table[(table.format == "lm-eval") & (table.edit == "AffineEdit")].status.item()
        'exact'
    """
    return pd.DataFrame(
        {"format": name, "edit": edit, "status": found.status, "why": found.why, "where": _where(one, edit)}
        for name, one in FORMATS.items()
        for edit in EDITS
        for found in [one.verdict(edit)]
    )


def _where(form: Format, edit: str) -> str:
    found = form.verdict(edit)
    limited = form.first_layer and edit in ONE_LAYER and found.status != "impossible"
    return ", ".join(filter(None, [f"layers from {form.first_layer}" if limited else "", found.where]))
