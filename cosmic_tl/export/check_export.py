"""Whether an exported edit does in its own reader what it does here."""

from dataclasses import dataclass, replace

import pandas as pd
import torch

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl._util.results import Result
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.export.exporting import Exported
from cosmic_tl.export.names import FORMATS
from cosmic_tl.generation.completions import new_tokens
from cosmic_tl.interventions.affine_map import AffineMap
from cosmic_tl.interventions.edits import Edit, MapEdit
from cosmic_tl.interventions.steer import steering
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.options import ChatFormat

TOLERANCE = 1e-4
"""Largest difference of a logit, float32."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class ExportCheck(Result):
    """An exported edit in its own reader, beside the same edit here."""

    table: pd.DataFrame
    """One row per prompt: prompt; difference, the largest of any logit at any token of prompt and completion; same_completion,
    whether greedy decoding chooses the same token at each step; control, the same difference from the control."""
    to: str
    reader: str
    control: str
    """What must differ: the same edit one layer off, or no edit where it acts at every layer."""
    tolerance: float = TOLERANCE

    @property
    def passed(self) -> bool:
        """Whether it is the same edit, and the control is another.

        Example:
            >>> row = {"prompt": "hello", "difference": 1e-5, "same_completion": True, "control": 0.4}
            >>> ExportCheck(pd.DataFrame([row]), "steer.py", "transformers", "one layer off").passed
            True
        """
        same = bool((self.table.difference <= self.tolerance).all() and self.table.same_completion.all())
        return same and bool(self.table.control.max() > 10 * self.tolerance)

    @property
    def sentence(self) -> str:
        """What was found, in one sentence.

        Example:
            >>> row = {"prompt": "hello", "difference": 1e-5, "same_completion": True, "control": 0.4}
            >>> ExportCheck(pd.DataFrame([row]), "steer.py", "transformers", "no edit").sentence
            'steer.py in transformers is the same edit: logits differ by at most 1.0e-05 (0.0001 is allowed), 1 of 1 greedy ...'
        """
        table = self.table
        return (
            f"{self.to} in {self.reader} is {'' if self.passed else 'not '}the same edit: logits differ by at most "
            f"{table.difference.max():.1e} ({self.tolerance:g} is allowed), {int(table.same_completion.sum())} of {len(table)} "
            f"greedy completions are equal, and the control ({self.control}) differs by {table.control.max():.1e}"
        )

    def _lines(self) -> list[str]:
        return [self.sentence]


@checked
def check_export(
    model: TransformerBridge,
    exported: Exported,
    prompts: list[str],
    *,
    chat: ChatFormat | None = None,
    max_new_tokens: int = 16,
) -> ExportCheck:
    """Run an exported edit in its own reader and compare logits and greedy completions with the same edit here.

    The completion is written here, and read in one pass in both places, so that equal choices at each of its tokens mean equal
    greedy completions. The control must differ: the same edit one layer off, or no edit where the edit acts at every layer.

    Args:
        model: The model that it was exported for.
        exported: From `export_edit`.
        prompts: Instructions.
        chat: Formatting. Defaults to the plain chat template.
        max_new_tokens: Maximum length of the completions. Default 16.

    Raises:
        CosmicError: If the reader is not installed or there are no prompts.

    Example:
        >>> import tempfile
        >>> from cosmic_tl import AffineEdit, Direction, load_model
        >>> from cosmic_tl.export import export_edit
        >>> model = load_model("demo", device="cpu")
        >>> edit = AffineEdit(Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1), 0.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_export(model, export_edit(model, edit, "steer.py", f"{folder}/steer.py"), ["hello"]).passed
        True
    """
    if not prompts:
        raise CosmicError("prompts: found none; give at least one")
    check_count("max_new_tokens", max_new_tokens)
    form, edit = FORMATS[exported.to], exported.edit
    rows = tokenize(model, prompts, chat)
    answers = new_tokens(model, rows, edit, max_new_tokens=max_new_tokens)
    other = _one_layer_off(edit, int(model.cfg.n_layers))
    found = []
    with torch.inference_mode(), form.applied(exported.path, model) as logits_of, track(len(rows), "check") as advance:
        for prompt, row, answer in zip(prompts, rows, answers, strict=True):
            ids = torch.tensor([row + answer[:-1]], device=model.cfg.device)
            theirs = logits_of(ids, len(row))[0].float().cpu()
            ours, control = (_logits(model, ids, one, len(row)) for one in (edit, other))
            found.append(
                {
                    "prompt": prompt,
                    "difference": float((theirs - ours).abs().max()),
                    "same_completion": theirs[len(row) - 1 :].argmax(-1).tolist() == answer,
                    "control": float((theirs - control).abs().max()),
                }
            )
            advance(1)
    off = "no edit" if other is None else "the same edit one layer off"
    return ExportCheck(pd.DataFrame(found), form.name, form.reader, off)


def _logits(model: TransformerBridge, ids: torch.Tensor, edit: Edit | None, prompt_length: int) -> torch.Tensor:
    with steering(model, () if edit is None else edit, prompt_length=prompt_length):
        logits: torch.Tensor = model(ids)
    return logits[0].float().cpu()


def _one_layer_off(edit: Edit, n_layers: int) -> Edit | None:
    """The same map at the next layer, or at the one before the last; None for edits of every layer."""
    layer, _ = edit.place
    if layer < 0 or n_layers == 1:
        return None
    found: AffineMap = replace(edit.map, fingerprint="")
    return MapEdit(found, layer + 1 if layer + 1 < n_layers else layer - 1, edit.tokens)
