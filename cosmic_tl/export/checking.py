"""Whether an exported edit does in its own reader what it does here."""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl._util.results import Result
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.export.exporting import Exported
from cosmic_tl.export.formats import Format
from cosmic_tl.export.names import FORMATS
from cosmic_tl.generation.completions import new_tokens
from cosmic_tl.interventions.affine_map import AffineMap
from cosmic_tl.interventions.edits import Edit, MapEdit
from cosmic_tl.interventions.steer import steering
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.options import ChatFormat

FACTOR = 1.5
"""Largest divergence with the edit, as a multiple of the one without it, where the reader's arithmetic is another."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class ExportCheck(Result):
    """An exported edit in its own reader, beside the same edit here."""

    table: pd.DataFrame
    """One row per prompt: prompt; difference, the largest of any logit at any token of prompt and completion; same_completion,
    whether greedy decoding chooses the same token at each step; control, the same difference from the control. Where the reader's
    arithmetic is another (quantized weights), differences are KL(here ‖ reader) in nats per token, and unedited is that of the
    model without the edit, on the same tokens."""
    to: str
    reader: str
    control: str
    """What must differ: the same edit one layer off, or no edit where it acts at every layer."""
    tolerance: float = Format.precision
    """How far logits may be apart, float32."""

    @property
    def passed(self) -> bool:
        """Whether it is the same edit, and the control is another.

        Example:
            >>> row = {"prompt": "hello", "difference": 1e-5, "same_completion": True, "control": 0.4}
            >>> ExportCheck(pd.DataFrame([row]), "steer.py", "transformers", "one layer off").passed
            True
            >>> row |= {"difference": 0.011, "unedited": 0.01}
            >>> ExportCheck(pd.DataFrame([row]), "llama.cpp", "llama_cpp", "one layer off").passed
            True
        """
        if "unedited" in self.table:
            return bool(self.table.difference.mean() <= FACTOR * self.table.unedited.mean() < self.table.control.mean())
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
        table, said = self.table, "is the same edit" if self.passed else "is not the same edit"
        equal = f"{int(table.same_completion.sum())} of {len(table)} greedy completions are equal"
        begin = f"{self.to} in {self.reader} {said}:"
        if "unedited" in table:
            means = table[["difference", "unedited", "control"]].mean()
            return (
                f"{begin} the KL divergence is {means.difference:.2g} nats per token, and {means.unedited:.2g} without the edit "
                f"({FACTOR:g} times that is allowed), {equal}, and the control ({self.control}) has {means.control:.2g}"
            )
        return (
            f"{begin} logits differ by at most {table.difference.max():.1e} ({self.tolerance:g} is allowed), {equal}, and the "
            f"control ({self.control}) differs by {table.control.max():.1e}"
        )

    def _lines(self) -> list[str]:
        return [f"ExportCheck: {self.sentence}"]


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

    Logits may be apart by what the format states as its precision: 1e-4, or 1e-3 where weights or another tool's arithmetic
    remove a direction. A reader on other weights, as llama.cpp on quantized ones, differs without any edit. There the mean KL
    divergence must be at most 1.5 times that of the unedited model, and the control's must be larger.

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
    texts = [
        torch.tensor([row + answer[:-1]], device=model.cfg.device) for row, answer in zip(rows, answers, strict=True)
    ]
    other = _one_layer_off(edit, int(model.cfg.n_layers))
    unedited = form.unedited(model)
    measure = _largest if unedited is None else _divergence
    found: list[dict[str, Any]] = [{"prompt": prompt} for prompt in prompts]
    with torch.inference_mode(), track(len(rows) * (1 if unedited is None else 2), "check") as advance:
        with form.applied(exported.path, model) as logits_of:
            for one, row, answer, ids in zip(found, rows, answers, texts, strict=True):
                theirs = logits_of(ids, len(row))[0].float().cpu()
                one["difference"] = measure(_logits(model, ids, edit, len(row)), theirs)
                one["same_completion"] = theirs[len(row) - 1 :].argmax(-1).tolist() == answer
                one["control"] = measure(_logits(model, ids, other, len(row)), theirs)
                advance(1)
        if unedited is not None:
            with unedited as logits_of:
                for one, row, ids in zip(found, rows, texts, strict=True):
                    theirs = logits_of(ids, len(row))[0].float().cpu()
                    one["unedited"] = measure(_logits(model, ids, None, len(row)), theirs)
                    advance(1)
    off = "no edit" if other is None else "the same edit one layer off"
    return ExportCheck(pd.DataFrame(found), form.name, form.reader, off, form.precision)


def _logits(model: TransformerBridge, ids: torch.Tensor, edit: Edit | None, prompt_length: int) -> torch.Tensor:
    with steering(model, () if edit is None else edit, prompt_length=prompt_length):
        logits: torch.Tensor = model(ids)
    return logits[0].float().cpu()


def _largest(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((theirs - ours).abs().max())


def _divergence(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    here, there = (logits.double().log_softmax(-1) for logits in (ours, theirs))
    return float((here.exp() * (here - there)).sum(-1).mean())


def _one_layer_off(edit: Edit, n_layers: int) -> Edit | None:
    """The same map at the next layer, or at the one before the last; None for edits of every layer."""
    layer, _ = edit.place
    if layer < 0 or n_layers == 1:
        return None
    found: AffineMap = replace(edit.map, fingerprint="")
    return MapEdit(found, layer + 1 if layer + 1 < n_layers else layer - 1, edit.tokens)
