"""A model of the user's choice, and what is computed with it once for all tests in this folder.

`COSMIC_TL_REAL_MODEL` names the model, a directory or a hub id; `COSMIC_TL_REAL_PROMPTS` a file of prompts (default: the
demo's); `COSMIC_TL_REAL_N` how many prompts per side are used (default 32). `make test-real MODEL=…` sets them.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cosmic_tl import ContrastSet, CosmicOptions, load_model, load_prompts, select_cosmic
from real.plain import PlainModel


@pytest.fixture(scope="session")
def real_model_path() -> str:
    return os.environ["COSMIC_TL_REAL_MODEL"]


@pytest.fixture(scope="session")
def real_gguf(real_model_path) -> Path:
    """The same model as a GGUF file in its directory; tests that take it are deselected where there is none."""
    return Path(real_model_path) / "model.gguf"


@pytest.fixture(scope="session")
def real_n() -> int:
    """Prompts per side, of each split."""
    return int(os.environ.get("COSMIC_TL_REAL_N") or 32)


@pytest.fixture(scope="session")
def real_prompts(real_n) -> ContrastSet:
    """The first `real_n` prompts of each side and split."""
    found = load_prompts(os.environ.get("COSMIC_TL_REAL_PROMPTS") or "demo")
    few = {s: {split: some[:real_n] for split, some in getattr(found, s).items()} for s in ("positive", "negative")}
    return replace(found, **few)


@pytest.fixture(scope="session")
def real_model(real_model_path):
    """The bridge in float32. Tests leave its weights as they are."""
    return load_model(real_model_path, dtype="float32")


@pytest.fixture(scope="session")
def plain(real_model_path, real_model) -> PlainModel:
    """The same checkpoint in plain transformers, float32, with raw torch hooks."""
    return PlainModel(real_model_path, torch.device(str(real_model.cfg.device)))


def options_of(mode, n):
    """Few resamples, because each further winner takes a pass for its KL; with few prompts, to be quick, few positions."""
    return CosmicOptions(
        mode=mode, n_train=n, n_val=n, n_resamples=20, n_positions=1 if n < 8 else 2 if n < 16 else None
    )


def _select(model, prompts, mode, n):
    return select_cosmic(model, prompts, options_of(mode, n))


@pytest.fixture(scope="session")
def affine_selection(real_model, real_prompts, real_n):
    return _select(real_model, real_prompts, "affine", real_n)


@pytest.fixture(scope="session")
def linear_selection(real_model, real_prompts, real_n):
    return _select(real_model, real_prompts, "linear", real_n)
