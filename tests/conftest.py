import os

# Threads that spin while they wait stall each other on a machine with two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import shutil

import pytest

from cosmic_tl import load_model, load_prompts


@pytest.fixture(scope="session")
def demo():
    return load_model("demo", device="cpu")


@pytest.fixture(scope="session")
def prompts():
    return load_prompts("demo")


@pytest.fixture(scope="session")
def chromium():
    """A Chromium's path. With REQUIRE_CHROMIUM set, as in CI, it is an error that there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        (pytest.fail if os.environ.get("REQUIRE_CHROMIUM") else pytest.skip)("no Chromium on the PATH")
    return found
