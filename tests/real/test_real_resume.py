"""A run that is stopped at several points goes on to the files that it would have written without a stop."""

import re

import pytest
from safetensors import safe_open

from cosmic_tl import CosmicOptions, RunSettings, run

# Any threshold will do: what is resumed does not depend on the choice.
SETTINGS = RunSettings(
    CosmicOptions(n_train=4, n_val=4, n_positions=1, max_kl=100.0, n_resamples=20),
    n_test=2,
    max_new_tokens=4,
    batch_size=8,
    n_placebos=1,
)


class Stopping:
    """Counts how often a block late in the model runs, and stops like Ctrl-C at a given count."""

    def __init__(self, model):
        self.block = model.blocks[int(0.7 * len(model.blocks))]

    def __call__(self, work, at=None):
        count = 0

        def before(module, args):
            nonlocal count
            count += 1
            if count == at:
                raise KeyboardInterrupt

        handle = self.block.register_forward_pre_hook(before)
        try:
            work()
        finally:
            handle.remove()
        return count


def files(folder):
    """All that a run wrote, but for how long it took."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".safetensors":  # which writes its metadata in no particular order
            with safe_open(path, "pt") as file:
                content = {key: file.get_tensor(key).tolist() for key in file.keys()} | (file.metadata() or {})  # noqa: SIM118
        if path.suffix in (".json", ".html"):
            content = re.sub(rb'"seconds": [\d.]+|[\d.]+ s\b', b"", content)
        found[str(path.relative_to(folder))] = content
    return found


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_files(real_model, real_prompts, tmp_path):
    stopping = Stopping(real_model)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    total = stopping(lambda: run(real_model, real_prompts, whole, SETTINGS))
    stops = 0
    for share in (0.1, 0.4, 0.3, 0.2):  # of what the whole run takes; each goes on where the one before stopped
        with pytest.raises(KeyboardInterrupt):
            stopping(lambda: run(real_model, real_prompts, stopped, SETTINGS), at=max(1, int(share * total)))
        stops += 1
        assert not (stopped / "summary.json").exists()
    resumed = stopping(lambda: run(real_model, real_prompts, stopped, SETTINGS))
    assert stops == 4 and resumed < 0.9 * total
    one, other = files(whole), files(stopped)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
