"""llama.cpp itself, on the GGUF file that `COSMIC_TL_LLAMACPP_MODEL` names; `make test-llamacpp MODEL=…` sets it."""

import os

import pytest

from cosmic_tl import load_model

if not os.environ.get("COSMIC_TL_LLAMACPP_MODEL"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def gguf_model():
    """The bridge with the weights of the file, in float32."""
    return load_model(os.environ["COSMIC_TL_LLAMACPP_MODEL"], dtype="float32", device="cpu")
