import os

# Threads that spin while they wait stall each other on a machine with two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest

from cosmic_tl import load_model, load_prompts


@pytest.fixture(scope="session")
def demo():
    return load_model("demo", device="cpu")


@pytest.fixture(scope="session")
def prompts():
    return load_prompts("demo")
