import os

# Threads that spin while they wait stall each other on a machine with two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if not os.environ.get("COSMIC_TL_REAL_MODEL"):  # which may be a hub id
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import shutil
import sys
from pathlib import Path

import hypothesis
import pytest
from tiny import ARCHITECTURES, save

import cosmic_tl as ct

# Neither torch nor what needs it: the process that hands out the tests to others would import it too, while they wait.

hypothesis.settings.register_profile("quick", max_examples=25, derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("fuzz", max_examples=3000, deadline=None)
hypothesis.settings.load_profile("quick")
REAL = Path(__file__).parent / "real"


def _is_for(item, model):
    """Whether a test on a real model can run on this one."""
    return bool(model) and ("real_gguf" not in item.fixturenames or (Path(model) / "model.gguf").is_file())


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(config, items):
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
    real = [item for item in items if item.path.is_relative_to(REAL)]
    for item in real:
        item.add_marker("real")
    if out := [item for item in real if not _is_for(item, os.environ.get("COSMIC_TL_REAL_MODEL"))]:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


def pytest_terminal_summary(terminalreporter, config):
    if os.environ.get("COSMIC_TL_REAL_MODEL"):
        return
    asked = [Path(str(config.invocation_params.dir), arg.split("::")[0]).resolve() for arg in config.args]
    if any(REAL.is_relative_to(path) or path.is_relative_to(REAL) for path in asked):
        terminalreporter.write_line("Tests on a real model were deselected; run them with: make test-real MODEL=…")


@pytest.fixture(scope="session")
def demo():
    return ct.load_model("demo", device="cpu")


@pytest.fixture(scope="session")
def prompts():
    return ct.load_prompts("demo")


@pytest.fixture(scope="session")
def chromium():
    """A Chromium's path. With REQUIRE_CHROMIUM set, as in CI, it is an error that there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        (pytest.fail if os.environ.get("REQUIRE_CHROMIUM") else pytest.skip)("no Chromium on the PATH")
    return found


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request, tmp_path_factory):
    """The bridge, and a separate plain Hugging Face model with the same weights."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = save(tmp_path_factory.mktemp(request.param), request.param)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    return ct.load_model(folder, device="cpu"), plain


@pytest.fixture(scope="session")
def save_model():
    """The function that writes a tiny random model of some type into a folder."""
    return save


@pytest.fixture
def direction():
    import torch

    generator = torch.Generator().manual_seed(1)
    return ct.Direction(
        torch.randn(32, generator=generator), torch.randn(32, generator=generator), layer=1, position=-1
    )


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command line in this process; gives exit code, output and errors."""
    from cosmic_tl import cli

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["cosmic-tl", *map(str, args)])
        with pytest.raises(SystemExit) as caught:  # it always exits
            cli.main()
        found = capsys.readouterr()
        return caught.value.code or 0, found.out, found.err

    return call


@pytest.fixture(scope="module")
def addition(demo):
    import torch

    from cosmic_tl.model.fingerprint import model_fingerprint

    vector = torch.randn(128, generator=torch.Generator().manual_seed(1))
    return ct.Addition(ct.Direction(vector, None, 3, -1, fingerprint=model_fingerprint(demo), model="demo"), alpha=2.0)
