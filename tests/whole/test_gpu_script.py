"""The GPU benchmark runs, at tiny size, wherever the tests do."""

import math

from benchmarks.gpu import TOLERANCE, measure
from benchmarks.results import BARS


def test_the_gpu_script_runs_at_tiny_size():
    found = measure(tiny=True)
    assert set(BARS["gpu"]) <= set(found)
    assert all(math.isfinite(value) for name, value in found.items() if "peak memory" not in name), found
    assert 0 < found["largest score difference from float32"] < TOLERANCE
    assert found["seconds"] > 0 and found["over_floor"] > 1
