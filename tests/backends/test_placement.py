import pytest

from cosmic_tl.backends.placement import Share, share_of
from cosmic_tl.errors import CosmicError


@pytest.mark.parametrize(
    ("machines", "workers", "expected"),
    [
        ([{"CPU": 2}], 2, Share(1, 0.0, 0.0)),
        ([{"CPU": 8}, {"CPU": 8}], 3, Share(4, 0.0, 0.0)),  # and not 5, of which a machine has room for one
        ([{"CPU": 4}, {"CPU": 64}], 2, Share(32, 0.0, 0.0)),
        ([{"CPU": 16, "GPU": 8}], 3, Share(5, 2.0, 0.0)),
        ([{"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1}], 3, Share(4, 0.5, 0.0)),
        ([{"CPU": 4}, {"CPU": 8, "GPU": 1}], 1, Share(8, 1.0, 0.0)),
        ([{"CPU": 21, "GPU": 1}], 7, Share(3, 0.14, 0.0)),
    ],
)
def test_every_worker_has_its_place(machines, workers, expected):
    found = share_of(machines, workers)
    assert found == expected and found.places(machines) >= workers


def test_what_is_asked_for_is_kept():
    assert share_of([{"CPU": 8, "GPU": 2}], 2, cpus=1, gpus=0.0) == Share(1, 0.0, 0.0)
    assert share_of([{"CPU": 8, "memory": 64 * 2.0**30}, {"CPU": 8}], 2, memory=30.0) == Share(4, 0.0, 30.0)


@pytest.mark.parametrize(
    ("machines", "asked", "said"),
    [
        ([{"CPU": 2}], {"workers": 3}, r"room for 2 of 3 with 1 CPUs each \(its machines have 2 CPUs\)"),
        ([{"CPU": 3}, {"CPU": 3}], {"workers": 3, "cpus": 2}, "room for 2 of 3 with 2 CPUs each"),
        ([{"CPU": 8, "GPU": 1}], {"workers": 2, "gpus": 1.0}, "room for 1 of 2 with 1 CPUs, 1 GPUs each"),
        ([{"CPU": 8, "memory": 2.0**33}], {"workers": 2, "memory": 6.0}, "room for 1 of 2 with 1 CPUs, 6 GiB each"),
        ([], {"workers": 1}, "room for 0 of 1"),
    ],
)
def test_too_little_room_is_refused(machines, asked, said):
    with pytest.raises(CosmicError, match=f"workers: Ray has {said}"):
        share_of(machines, **asked)
