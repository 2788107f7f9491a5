"""Models whose blocks are on disk: the same results, and each block read once for all candidates that have room."""

from collections import Counter

import pytest
import torch
from accelerate.utils.offload import OffloadedWeightsLoader
from test_engine import CHAT, READINGS, TEXTS, edits_on, everything

from cosmic_tl import AffineEdit, ChatFormat, CosmicOptions, Direction, load_model, load_prompts, select_cosmic
from cosmic_tl.activations import mean_of_rows, random_splits
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.engine import Reading, by_block, intervened
from cosmic_tl.interventions.steer import steering
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.layer_by_layer import layer_by_layer
from cosmic_tl.model.load import demo_path
from cosmic_tl.model.offload import is_offloaded, loaded
from cosmic_tl.model.shortcuts import Shortcuts, shared_prefix, shortcuts

PLACES = {"gpt2": ["wte", "wpe", "drop", "ln_f"]}
BLOCKS = {"gpt2": "transformer.h"}


def on_disk(path, folder, kind="qwen2"):
    """Blocks on disk, the rest in memory."""
    blocks = BLOCKS.get(kind, "model.layers")
    stem = blocks.rpartition(".")[0]
    places = {blocks: "disk", "lm_head": "cpu"}
    places |= {f"{stem}.{name}": "cpu" for name in PLACES.get(kind, ["embed_tokens", "norm", "rotary_emb"])}
    return load_model(path, device_map=places, offload_folder=str(folder))


@pytest.fixture(scope="module", params=["qwen2", "phi3", "gpt2"])
def two(request, save_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    path = save_model(folder / "model", request.param)
    return load_model(path, device="cpu"), on_disk(path, folder / "away", request.param)


@pytest.mark.parametrize("reading", READINGS, ids=lambda r: f"{r.layers} {r.n_positions} {r.logits}")
def test_offloaded_blocks_give_the_same(two, direction, reading):
    here, away = two
    rows = tokenize(here, TEXTS, CHAT)
    assert is_offloaded(away) and not is_offloaded(here) and shortcuts(away, rows) == Shortcuts()
    edits, keep = edits_on(direction), everything(reading.layers)
    expected = dict(intervened(here, rows, edits, reading, keep, batch_size=9))
    found = dict(intervened(away, rows, edits, reading, keep, batch_size=9))
    assert set(found) == set(expected) == set(range(len(edits)))
    for number, one in expected.items():
        assert (found[number] - one).abs().max() <= 1e-6 * max(1, one.abs().max()), edits[number]
    assert all(param.device.type == "meta" for param in leaves(away)), "weights were left in memory"


def leaves(model):
    for block in model.blocks:
        for module in block.modules():
            if getattr(module.__dict__.get("_hf_hook"), "offload", False):
                yield from module.parameters(False)


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    return on_disk(demo_path(), tmp_path_factory.mktemp("away"))


@pytest.fixture
def reads(monkeypatch):
    """How often each weight is read from disk."""
    counts, read = Counter(), OffloadedWeightsLoader.__getitem__

    def counted(self, key):
        counts[key] += 1
        return read(self, key)

    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", counted)
    return counts


def by_layer(counts):
    """Reads of a block's weights, which have to be as many for all of them."""
    found = {}
    for key, n in counts.items():
        if key.startswith("model.layers."):
            found.setdefault(int(key.split(".")[2]), set()).add(n)
    assert all(len(some) == 1 for some in found.values()), found
    return {layer: some.pop() for layer, some in sorted(found.items())}


@pytest.mark.parametrize(("room", "waves"), [(2**28, 1), (1, 3)])
def test_each_block_is_read_once_per_group(spread, prompts, reads, monkeypatch, room, waves):
    monkeypatch.setattr(by_block, "HELD", room)
    monkeypatch.setattr(by_block, "block_bytes", lambda model: 0)
    rows = tokenize(spread, prompts.side("positive", "val", 12))
    chance = torch.Generator().manual_seed(0)
    edits = [
        AffineEdit(Direction(torch.randn(128, generator=chance), torch.zeros(128), layer, -1), alpha)
        for layer in (2, 4, 5)
        for alpha in (0.0, 1.0)
    ]
    keep = lambda outcome: outcome.resid_post[6][:, -1]  # noqa: E731
    list(intervened(spread, rows, edits[:1], Reading((6,)), keep, batch_size=4))  # the probe of shortcuts
    reads.clear()
    assert len(dict(intervened(spread, rows, edits, Reading((6,)), keep, batch_size=8))) == 6
    if waves == 1:
        assert by_layer(reads) == dict.fromkeys(range(7), 1)
    else:  # one group each: from its source layer on, and below the clean stream once for all
        assert by_layer(reads) == {0: 1, 1: 1, 2: 2, 3: 2, 4: 3, 5: 3, 6: 3}


def test_surrounding_edits_count_once(demo, spread, prompts):
    rows = tokenize(demo, prompts.side("positive", "val", 6))
    chance = torch.Generator().manual_seed(0)
    around, edit = (
        AffineEdit(Direction(torch.randn(128, generator=chance), torch.randn(128, generator=chance), layer, -1), 1.0)
        for layer in (4, 2)
    )
    keep = lambda outcome: outcome.resid_post[6][:, -1]  # noqa: E731
    found = []
    for model in (demo, spread):
        with steering(model, around):
            found.append(dict(intervened(model, rows, [edit, ()], Reading((6,)), keep))[0])
        found.append(dict(intervened(model, rows, [edit], Reading((6,)), keep))[0])
    assert (found[0] - found[2]).abs().max() <= 1e-5 and (found[1] - found[3]).abs().max() <= 1e-5
    assert (found[0] - found[1]).abs().max() > 1e-2


def test_memory_that_runs_out_halves_the_candidates(spread, prompts, monkeypatch):
    rows = tokenize(spread, prompts.side("positive", "val", 6))
    edits = [AffineEdit(Direction(torch.ones(128), torch.zeros(128), layer, -1), 1.0) for layer in (1, 2, 3, 4)]
    keep = lambda outcome: outcome.resid_post[6][:, -1]  # noqa: E731
    expected = dict(intervened(spread, rows, edits, Reading((6,)), keep))
    wave, sizes = by_block._wave, []

    def small(clean, edits, chunks, reduce):
        sizes.append(len(chunks))
        found = wave(clean, edits, chunks, reduce)  # the clean stream has moved when memory runs out
        if len(chunks) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return found

    monkeypatch.setattr(by_block, "_wave", small)
    found = dict(intervened(spread, rows, edits, Reading((6,)), keep))
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    assert all(torch.equal(found[i], one) for i, one in expected.items())


def test_activations_by_layer_read_each_block_once(demo, spread, prompts, reads):
    rows = tokenize(demo, prompts.side("positive", "val", 10))
    expected = list(layer_by_layer(demo, rows, batch_size=3))
    list(layer_by_layer(spread, rows[:2]))
    reads.clear()
    found = list(layer_by_layer(spread, rows, batch_size=3))
    assert by_layer(reads) == dict.fromkeys(range(7), 1)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


def test_means_read_each_block_once(demo, spread, prompts, reads):
    rows = tokenize(demo, prompts.side("positive", "train", 10))
    (splits,) = random_splits([10], seeds=[0])
    expected = mean_of_rows(demo, rows, n_positions=2, batch_size=3, splits=splits)
    mean_of_rows(spread, rows[:2])
    reads.clear()
    found = mean_of_rows(spread, rows, n_positions=2, batch_size=3, splits=splits)
    assert by_layer(reads) == dict.fromkeys(range(8), 1)
    pairs = [
        (found.resid_pre, expected.resid_pre),
        (found.resid_post, expected.resid_post),
        (found.squares, expected.squares),
        (found.splits[0], expected.splits[0]),
    ]
    assert all(torch.allclose(a, b, atol=1e-6, rtol=1e-6) for a, b in pairs)


def test_weights_are_dropped_when_a_pass_fails(spread):
    def fail():
        with loaded([spread.blocks[2]]):
            assert all(param.device.type == "cpu" for param in spread.blocks[2].original_component.parameters())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(param.device.type == "meta" for param in spread.blocks[2].original_component.parameters())


def test_a_selection_reads_little_and_is_the_same(demo, spread, reads):
    options = CosmicOptions(n_train=8, n_val=8, max_kl=10.0, n_resamples=0, n_positions=2)
    chat = ChatFormat(system="You are a helpful person. Please answer what is asked.")
    prompts = load_prompts("demo")
    assert shared_prefix(demo, tokenize(demo, prompts.side("positive", "val", 8), chat)) > 0
    expected = select_cosmic(demo, prompts, options, chat=chat)
    assert isinstance(expected.candidates, Candidates)
    found = select_cosmic(spread, prompts, options, chat=chat)
    assert (found.direction.layer, found.direction.position) == (expected.direction.layer, expected.direction.position)
    for column in ("s_comply", "s_refuse", "kl"):
        assert (found.table[column] - expected.table[column]).abs().max() <= 1e-6, column
    assert max(by_layer(reads).values()) <= 30
