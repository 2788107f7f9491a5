"""PEFT adapters: directional ablation as a low-rank change of every matrix that writes to the stream.

`W' = W − r̂ (r̂ᵀ W)` is LoRA's `W' = W + B A` with `B = −r̂` and `A = r̂ᵀ W`, of rank 1; a subspace of `k` directions has rank `k`.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float64
from safetensors.torch import save
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError
from cosmic_tl.export.cards import adapter_card
from cosmic_tl.export.checkpoint import hub_name, plain_model
from cosmic_tl.export.checkpoint_format import AFTER_NORMS, passes_norms
from cosmic_tl.export.folder import check_folder, whole_folder
from cosmic_tl.export.formats import EXACT, IN_OTHER_ARITHMETIC, Format, Logits, Verdict
from cosmic_tl.interventions.edits import Edit
from cosmic_tl.interventions.orthogonalize import rehearse
from cosmic_tl.model.components import (
    Contribution,
    Writer,
    contributions,
    plain_modules,
    plain_parameters,
    unreadable_weight_reason,
)
from cosmic_tl.model.hooks import alone, without_hooks
from cosmic_tl.model.load import TransformerBridge

_CHUNK = 2**20
"""Number of weights that are read at a time, in double precision."""
_PREFIX = "base_model.model."


@dataclass(frozen=True, eq=False)
class _Written:
    """A parameter that writes to the stream, and how an edit changes it."""

    writer: Writer
    module: torch.nn.Module
    path: str
    """Of the module."""
    leaf: str
    """The parameter's name in it."""
    read: Float64[Tensor, "rank d_model"]
    subtracted: Float64[Tensor, "rank d_model"]

    @property
    def fused(self) -> bool:
        """Whether it holds the matrices of all experts."""
        return self.writer.parameter.ndim == 3

    def along(self) -> Float64[Tensor, "*others rank"]:
        """What each of the parameter's vectors of the stream has along the directions."""
        vectors = self.writer.parameter.detach().movedim(self.writer.axis, -1)
        step, found = max(1, _CHUNK // vectors.shape[-1]), []
        for matrix in vectors if self.fused else vectors[None]:
            rows = matrix if matrix.ndim == 2 else matrix[None]
            found += [rows[start : start + step].cpu().double() @ self.read.T for start in range(0, len(rows), step)]
        return torch.cat(found).reshape(*vectors.shape[:-1], len(self.read))

    def obstacle(self) -> str | None:
        """Why an adapter cannot change it, None if it can or need not."""
        name, kind = self.writer.name, type(self.module)
        if (reason := unreadable_weight_reason(self.writer.parameter)) is not None:
            return f"{name} cannot be read: {reason}"
        if "bias" in self.leaf:
            norms = self.writer.parameter.detach().cpu().double().norm(dim=-1) * self.read.norm(dim=1).max()
            written = self.along().abs().amax(-1) > 1e-6 * norms
            return f"{name} writes along it, and an adapter changes no bias" if written.any() else None
        if self.fused:
            # PEFT takes experts as [expert, output, input] unless the module says otherwise.
            stored = -1 if getattr(self.module, "is_transposed", False) else -2
            return None if self.writer.axis == stored else f"{name} is stored in an order that peft does not know"
        scaled = hasattr(self.module, "embed_scale")  # which peft applies to what it adds
        if kind.forward in (torch.nn.Linear.forward, Conv1D.forward, torch.nn.Embedding.forward) or (
            scaled and isinstance(self.module, torch.nn.Embedding)
        ):
            return None
        return f"peft has no adapter for {name}, which belongs to a {kind.__name__}"

    def tensors(self) -> dict[str, Tensor]:
        """The adapter's two factors, as PEFT names them."""
        along, change = self.along(), -self.subtracted.T
        if isinstance(self.module, torch.nn.Embedding):
            found = {"lora_embedding_A": along.T, "lora_embedding_B": change}
        else:
            if self.fused:  # A has one row per expert and rank, B one column per rank and expert
                change = change.repeat_interleave(len(along), 1)
                along = along.transpose(0, 1).flatten(1)
            found = {"lora_A.weight": along.T, "lora_B.weight": change}
        return {f"{_PREFIX}{self.path}.{name}": x.float().contiguous() for name, x in found.items()}


class PeftLora(Format):
    """A folder with an adapter for `peft`, `transformers` and whatever else reads PEFT's LoRA."""

    name = "peft"
    title = "PEFT LoRA adapter of the orthogonalized weights"
    file = "adapter"
    reader = "peft"
    carries: ClassVar[Mapping[str, Verdict]] = {"Ablation": EXACT, "SubspaceAblation": EXACT}
    precision = IN_OTHER_ARITHMETIC
    otherwise = Verdict("impossible", "an adapter changes matrices, at all layers alike, and adds no constant")

    def verdict_on(self, model: TransformerBridge, edit: Edit) -> Verdict:
        """Whether an adapter can change every parameter of the model that writes along the directions."""
        verdict = self.verdict(edit)
        if verdict.status == "impossible":
            return verdict
        found = _written(model, edit)
        if (why := next(filter(None, (one.obstacle() for one in found)), None)) is not None:
            return Verdict("impossible", why)
        if passes_norms(model):
            return AFTER_NORMS
        return verdict

    def write(self, model: TransformerBridge, edit: Edit, path: Path, about: Mapping[str, Any]) -> None:
        """Write `adapter_config.json`, `adapter_model.safetensors`, and what is known of the edit in `README.md`."""
        check_folder("out", path, overwrite=True)
        with alone(model), without_hooks(model):
            for unit in edit.map.left:
                rehearse(model, contributions(model), Direction(unit.float(), None, layer=0, position=-1))
        found = [one for one in _written(model, edit) if "bias" not in one.leaf]
        tensors: dict[str, Tensor] = {}
        for one in found:
            tensors |= one.tensors()
        config = _config(model, found, len(edit.map.left))
        names = [name for name, parameter in plain_parameters(model.original_model) if parameter is _table(found)]
        verdict, fused = self.verdict_on(model, edit), any(one.fused for one in found)
        card = adapter_card(about, config["base_model_name_or_path"], verdict, tied=len(names) > 1, fused=fused)
        with whole_folder(path) as new:
            (new / "adapter_model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
            (new / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            (new / "README.md").write_text(card, encoding="utf-8")

    @contextmanager
    def applied(self, path: Path, model: TransformerBridge) -> Iterator[Logits]:
        """Load it with peft, unmerged."""
        try:
            peft = import_module("peft")
        except ImportError as error:
            raise CosmicError("reader: peft is not installed; pip install 'cosmic_tl[export]'") from error
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # said in README.md
            loaded = peft.PeftModel.from_pretrained(plain_model(model), str(path)).eval()
        yield lambda ids, _: loaded(ids).logits


def _written(model: TransformerBridge, edit: Edit) -> list[_Written]:
    """Every parameter that writes to the stream, once."""
    modules = {name.removesuffix("."): module for name, module in plain_modules(model.original_model)}
    found: dict[int, _Written] = {}
    for one in contributions(model):
        read, subtracted = _factors(one, edit.map.left.double())
        for writer in one.writers:
            path, _, leaf = writer.name.rpartition(".")
            found.setdefault(id(writer.parameter), _Written(writer, modules[path], path, leaf, read, subtracted))
    return list(found.values())


def _factors(one: Contribution, basis: Float64[Tensor, "rank d_model"]) -> tuple[Tensor, Tensor]:
    """What is read and what is subtracted, as in `orthogonalize_weights`; a norm's gain is taken out around it."""
    if one.gain is None:
        return basis, basis
    if one.gain.abs().min() < 1e-6 * one.gain.abs().max():
        raise CosmicError(f"model: the gain of the norm after {one} is zero in places; use the format steer.py")
    return basis * one.gain, basis / one.gain


def _table(found: list[_Written]) -> torch.nn.Parameter:
    """The table of token embeddings."""
    return found[0].writer.parameter


def _config(model: TransformerBridge, found: list[_Written], rank: int) -> dict[str, Any]:
    paths = {one.path for one in found if not one.fused}
    leaves = {path.rpartition(".")[2] for path in paths}
    every = (name.removesuffix(".") for name, _ in plain_modules(model.original_model))
    # Short names as people write them, where they mean these modules and no other.
    short = {name for name in every if name.rpartition(".")[2] in leaves} == paths
    config: dict[str, Any] = {
        "base_model_name_or_path": hub_name(model),
        "bias": "none",
        "fan_in_fan_out": any(isinstance(one.module, Conv1D) for one in found),
        "inference_mode": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(leaves if short else paths),
        "task_type": "CAUSAL_LM",
    }
    if fused := [one.writer.name for one in found if one.fused]:
        config["target_parameters"] = fused
    return config
