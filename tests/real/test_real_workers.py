"""A selection that Ray workers share is the selection of one process, on a real model."""

import os

import pytest
import torch

from cosmic_tl import select_cosmic
from cosmic_tl.backends import RayBackend, shared_by
from real.conftest import options_of


@pytest.mark.slow
def test_shared_scores_are_those_of_one_process(real_model, real_model_path, real_prompts, real_n):
    workers, before = max(2, (os.cpu_count() or 2) // 4), torch.get_num_threads()
    torch.set_num_threads(1)  # as each worker has: sums are then rounded alike
    try:
        alone = select_cosmic(real_model, real_prompts, options_of("affine", real_n))
        with (
            RayBackend(
                real_model_path, workers=workers, cpus_per_worker=1, device=str(real_model.cfg.device)
            ) as backend,
            shared_by(backend, real_model),
        ):
            shared = select_cosmic(real_model, real_prompts, options_of("affine", real_n))
    finally:
        torch.set_num_threads(before)
    if str(real_model.cfg.device) == "cpu":
        assert shared.table.equals(alone.table)
    difference = (shared.table.s_comply - alone.table.s_comply).abs().max()
    assert difference <= 1e-6
    assert (shared.direction.layer, shared.direction.position) == (alone.direction.layer, alone.direction.position)
    assert shared.stability.table.equals(alone.stability.table)
