import pytest
import torch

from cosmic_tl import Addition, Direction
from cosmic_tl.model.fingerprint import model_fingerprint


@pytest.fixture(scope="module")
def addition(demo):
    vector = torch.randn(128, generator=torch.Generator().manual_seed(1))
    return Addition(Direction(vector, None, 3, -1, fingerprint=model_fingerprint(demo), model="demo"), alpha=2.0)
