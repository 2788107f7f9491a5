import copy
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cosmic_tl import (
    Ablation,
    Addition,
    AffineEdit,
    AffineMap,
    Candidates,
    CosmicError,
    Direction,
    MapEdit,
    affine_edits,
    complete,
    difference_in_means,
    mean_activations,
    random_direction,
    steering,
)
from cosmic_tl._util.sealed import read_sealed, write_sealed
from cosmic_tl.engine import Reading, intervened
from cosmic_tl.interventions import AffineEverywhere
from cosmic_tl.interventions.affine_map import apply, placed, stack
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.forward import read


@pytest.fixture
def direction():
    generator = torch.Generator().manual_seed(0)
    return Direction(torch.randn(128, generator=generator), torch.randn(128, generator=generator), layer=3, position=-1)


@pytest.fixture
def batch(demo):
    return next(batches(demo, tokenize(demo, ["How do I bake a pizza?", "hi"]), 2))


def logits(model, batch, interventions, **options):
    with torch.inference_mode(), steering(model, interventions, **options):
        return model(batch.ids, attention_mask=batch.mask)


def test_each_intervention_is_the_papers_formula(direction):
    x = torch.randn(3, 128, dtype=torch.float64)
    r, nu, unit = direction.vector.double(), direction.reference.double(), direction.unit.double()
    along = (x @ unit)[:, None] * unit
    formulas = {
        Addition(direction, 0.7): x + 0.7 * r,
        Ablation(direction): x - along,
        AffineEdit(direction, 0.7): x - along + (nu @ unit) * unit + 0.7 * r,
    }
    for intervention, expected in formulas.items():
        found = intervention.map(x)
        assert (found - expected).abs().max() < 1e-5, intervention


def test_addition_and_ablation_are_subsets_of_ace(direction):
    """Each map is ACE's, with a part of it left out: what is read, the reference, or the addition."""
    ace, unit = AffineEdit(direction, 0.7).map, direction.unit.double()
    reference = direction.reference.double() @ unit
    added = Addition(direction, 0.7).map
    for one in (added, Ablation(direction).map, AffineEdit(direction, 0.0).map):
        assert torch.equal(one.left, ace.left)
    assert torch.equal(added.offset, ace.offset - reference) and not added.right.any()
    assert torch.equal(Ablation(direction).map.right, ace.right) and not Ablation(direction).map.offset.any()
    affine_ablation = AffineEdit(direction, 0.0).map
    assert torch.equal(affine_ablation.right, ace.right) and torch.equal(affine_ablation.offset, reference[None])
    centred = Direction(direction.vector, direction.reference * 0, 3, -1)
    x = torch.randn(3, 128, dtype=torch.float64)
    assert torch.equal(AffineEdit(centred, 0.0).map(x), Ablation(direction).map(x))


def test_maps_of_different_rank_share_a_batch(direction):
    rows = torch.randn(2, 128, dtype=torch.float64)
    plane = AffineMap(torch.linalg.pinv(rows).T, rows, torch.tensor([1.0, 2.0], dtype=torch.float64))
    maps = [plane, Ablation(direction).map]
    x = torch.randn(2, 5, 128, dtype=torch.float64)
    together = apply(x, *placed(stack(maps), x))
    for one, part, alone in zip(maps, x, together, strict=True):
        assert (one(part) - alone).abs().max() < 1e-12
    assert (together[0] @ rows.T - plane.offset).abs().max() < 1e-9


def test_any_map_can_be_an_edit(demo, direction, batch):
    for edit in (Addition(direction, 0.7), AffineEdit(direction, 0.7)):
        assert torch.equal(logits(demo, batch, MapEdit(edit.map, 3)), logits(demo, batch, edit))
    with pytest.raises(CosmicError, match="map: it is for a stream of width 4"):
        logits(demo, batch, MapEdit(AffineMap(torch.eye(1, 4), torch.eye(1, 4), torch.zeros(1)), 3))


def test_a_block_edit_sets_what_the_block_adds(demo, direction, batch):
    sites = [(layer, site) for layer in (2, 3) for site in ("hook_resid_pre", "hook_resid_post")]
    clean = read(demo, batch, sites, n_positions=3)
    # An earlier edit of what enters the block belongs to what enters, not to what is added.
    with steering(demo, [AffineEdit(direction, 0.7, part="block"), AffineEdit(direction, 5.0)]):
        found = read(demo, batch, sites, n_positions=3)
    assert torch.equal(found[2, "hook_resid_post"], clean[2, "hook_resid_post"])
    added = found[3, "hook_resid_post"] - found[3, "hook_resid_pre"]
    expected = float(direction.reference @ direction.unit) + 0.7 * direction.norm
    assert (added @ direction.unit - expected).abs().max() < 1e-3
    with steering(demo, AffineEdit(direction, 5.0)):
        plain = read(demo, batch, sites, n_positions=3)
    raw = plain[3, "hook_resid_post"] - plain[3, "hook_resid_pre"]
    across = lambda x: x - (x @ direction.unit)[..., None] * direction.unit  # noqa: E731
    assert (across(added) - across(raw)).abs().max() < 1e-3


@pytest.mark.parametrize("part", ["stream", "block"])
def test_ace_at_all_layers_makes_one_class_read_as_the_other(demo, prompts, part):
    positive, negative = (prompts.side(side, "train", 24) for side in ("positive", "negative"))
    means = [mean_activations(demo, side) for side in (positive, negative)]
    candidates = difference_in_means(*means, part=part)
    for alpha in (0.0, 1.0):
        edits = affine_edits(candidates, alpha=alpha, part=part)
        with steering(demo, edits):
            steered = mean_activations(demo, positive)
        for edit in edits:
            layer, unit = edit.direction.layer, edit.direction.unit.double()
            values = steered.resid_pre if part == "stream" else steered.resid_post - steered.resid_pre
            expected = float(edit.direction.reference.double() @ unit) + alpha * edit.direction.norm
            assert float(values[layer, -1] @ unit) == pytest.approx(expected, abs=1e-3)
    rows = tokenize(demo, positive[:6])
    edits = [affine_edits(candidates, alpha=alpha, part=part) for alpha in (0.0, 0.5)]
    edits += [affine_edits(candidates, part=part)[3], Addition(candidates.direction(4, -1))]
    found = dict(intervened(demo, rows, edits, Reading((6,)), lambda outcome: outcome.resid_post[6][:, -1]))
    for i, edit in enumerate(edits):
        for row, reached in zip(rows, found[i], strict=True):
            with steering(demo, edit):
                alone = read(demo, next(batches(demo, [row], 1)), [(6, "hook_resid_post")])[6, "hook_resid_post"]
            assert (reached - alone[0, -1]).abs().max() < 1e-4


def test_ace_sets_the_component_to_the_class_means(direction, demo, batch):
    for alpha in (0.0, 1.0):
        with steering(demo, AffineEdit(direction, alpha)):
            found = read(demo, batch, [(3, "hook_resid_pre")], n_positions=3)[3, "hook_resid_pre"]
        expected = float(direction.reference @ direction.unit) + alpha * direction.norm
        assert (found @ direction.unit - expected).abs().max() < 1e-4


def test_the_model_is_restored_also_after_an_exception(demo, direction, batch):
    state = copy.deepcopy(demo.original_model.state_dict())
    clean = logits(demo, batch, ())
    assert not torch.equal(logits(demo, batch, Ablation(direction)), clean)
    with pytest.raises(RuntimeError, match="on purpose"), steering(demo, [Ablation(direction), Addition(direction)]):
        raise RuntimeError("on purpose")
    assert torch.equal(logits(demo, batch, ()), clean)
    assert all(torch.equal(value, demo.original_model.state_dict()[key]) for key, value in state.items())


def test_later_interventions_see_what_earlier_ones_left(demo, direction, batch):
    both = logits(demo, batch, [AffineEdit(direction, 5.0), AffineEdit(direction, 0.0)])
    assert (both - logits(demo, batch, AffineEdit(direction, 0.0))).abs().max() < 1e-4
    nested = [Addition(direction, 1.0), Addition(direction, -1.0)]
    assert (logits(demo, batch, nested) - logits(demo, batch, ())).abs().max() < 1e-4


def test_contexts_nest(demo, direction, batch):
    with steering(demo, Addition(direction, 1.0)):
        inner = logits(demo, batch, Addition(direction, 1.0))
    assert (inner - logits(demo, batch, Addition(direction, 2.0))).abs().max() < 1e-4


def test_scopes_choose_tokens(demo, direction, batch):
    length = batch.ids.shape[1]
    both = logits(demo, batch, Addition(direction))
    assert torch.equal(logits(demo, batch, Addition(direction, tokens="prompt")), both)
    assert torch.equal(logits(demo, batch, Addition(direction, tokens="completion")), logits(demo, batch, ()))
    head = logits(demo, batch, Addition(direction, tokens="prompt"), prompt_length=length - 3)
    tail = logits(demo, batch, Addition(direction, tokens="completion"), prompt_length=length - 3)
    mask = (torch.arange(length) < length - 3).expand(2, -1)
    assert torch.equal(logits(demo, batch, Addition(direction, tokens=mask)), head)
    assert torch.equal(logits(demo, batch, Addition(direction, tokens=~mask)), tail)
    assert not torch.equal(head, tail) and not torch.equal(head, both)


@pytest.mark.parametrize("tokens", ["all", "prompt", "completion"])
def test_generation_with_a_cache_equals_passes_without_one(demo, direction, tokens):
    intervention = Addition(direction, 0.3, tokens=tokens)
    batch = next(batches(demo, tokenize(demo, ["How do I bake a pizza?"]), 1))
    length = batch.ids.shape[1]
    ids = batch.ids
    for _ in range(8):
        mask = {
            "all": None,
            "prompt": torch.arange(ids.shape[1]) < length,
            "completion": torch.arange(ids.shape[1]) >= length,
        }
        scope = "all" if mask[tokens] is None else mask[tokens][None]
        with torch.inference_mode(), steering(demo, Addition(direction, 0.3, tokens=scope)):
            ids = torch.cat([ids, demo(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    for generate in (
        lambda: demo.original_model.generate(
            batch.ids, attention_mask=batch.mask, max_new_tokens=8, min_new_tokens=8, do_sample=False
        ),
        lambda: demo.generate(batch.ids, max_new_tokens=8, do_sample=False, stop_at_eos=False, verbose=False),
    ):
        with torch.inference_mode(), steering(demo, intervention):
            found = generate()
        eos = (ids[0, length:] == demo.tokenizer.eos_token_id).nonzero()
        end = length + (int(eos[0]) if len(eos) else 8)
        assert torch.equal(found[0, :end], ids[0, :end])


def test_caching_sees_the_intervention(demo, direction, batch):
    with torch.inference_mode(), steering(demo, Ablation(direction)):
        _, cache = demo.run_with_cache(batch.ids, attention_mask=batch.mask)
    for layer in range(demo.cfg.n_layers):
        assert (cache[f"blocks.{layer}.hook_resid_post"] @ direction.unit).abs().max() < 1e-3


def test_compatibility_mode_applies_an_edit_once(demo, direction, batch, monkeypatch):
    once = logits(demo, batch, Addition(direction))
    monkeypatch.setattr(demo, "compatibility_mode", True)
    assert torch.equal(logits(demo, batch, Addition(direction)), once)


def test_half_precision_models_are_edited_in_float32():
    x = torch.full((1, 128), 100.0, dtype=torch.bfloat16)
    unit = torch.ones(128) / 128**0.5
    found = AffineMap(unit[None], unit[None], torch.zeros(1))(x)
    assert found.dtype == torch.bfloat16 and found.float().abs().max() < 0.5


def test_bad_interventions(demo, direction, batch):
    with pytest.raises(CosmicError, match="alpha: expected a finite number, found nan"):
        logits(demo, batch, Addition(direction, float("nan")))
    with pytest.raises(CosmicError, match="layers 0 to 7"):
        logits(demo, batch, Addition(direction, layer=8))
    for edits in (MapEdit(Ablation(direction).map, -1), [Ablation(direction), Addition(direction, layer=-1)]):
        with pytest.raises(CosmicError, match="found -1, and the model has layers 0 to 7"):
            logits(demo, batch, edits)
    with pytest.raises(CosmicError, match="mask has 3 rows and the batch 2"):
        logits(demo, batch, Addition(direction, tokens=torch.ones(3, 4, dtype=torch.bool)))
    with pytest.raises(CosmicError, match="width 64"):
        logits(demo, batch, Addition(Direction(torch.ones(64), torch.ones(64), 0, -1)))


@pytest.mark.parametrize("part", ["stream", "block"])
def test_ace_at_another_layer_takes_its_reference(demo, prompts, part):
    positive, negative = (prompts.side(side, "train", 24) for side in ("positive", "negative"))
    means = [mean_activations(demo, side) for side in (positive, negative)]
    candidates = difference_in_means(*means, part=part)
    direction = candidates.direction(3, -1)
    with pytest.raises(CosmicError, match=r"layer: found 5, .* of layer 3; pass `candidates.moved\(direction, 5\)`"):
        AffineEdit(direction, 0.0, layer=5, part=part)
    assert AffineEdit(direction, layer=3).map.offset == AffineEdit(direction).map.offset
    moved = candidates.moved(direction, 5)
    assert moved.layer == 5 and torch.equal(moved.vector, direction.vector)
    with steering(demo, AffineEdit(moved, 0.0, part=part)):
        steered = mean_activations(demo, positive)

    def at(means):
        return float(
            (means.resid_pre if part == "stream" else means.resid_post - means.resid_pre)[5, -1]
            @ direction.unit.double()
        )

    assert at(steered) == pytest.approx(at(means[1]), abs=1e-3)  # α = 0 reads as the negative class
    assert abs(at(steered) - at(means[0])) > 0.1
    with pytest.raises(CosmicError, match="found 8, and the candidates have layers 0 to 7"):
        candidates.moved(direction, 8)
    with pytest.raises(CosmicError, match="found -9, and the candidates have positions -5 to -1"):
        candidates.moved(Direction(torch.ones(128), torch.zeros(128), 3, -9), 5)


def test_a_direction_survives_the_disk_and_is_checked(tmp_path, demo, direction):
    path = tmp_path / "d.safetensors"
    direction.save(path)
    loaded = Direction.load(path, demo)
    assert torch.equal(loaded.vector, direction.vector) and torch.equal(loaded.reference, direction.reference)
    assert (loaded.layer, loaded.position, loaded.hook, loaded.versions) == (
        3,
        -1,
        "blocks.3.hook_resid_pre",
        direction.versions,
    )
    other = Direction(direction.vector, direction.reference, 3, -1, fingerprint="0" * 16, model="other")
    other.save(path)
    with pytest.raises(CosmicError, match="it was found in other"):
        Direction.load(path, demo)
    for vector, message in ((torch.full((128,), float("nan")), "NaN"), (torch.zeros(128), "zero")):
        with pytest.raises(CosmicError, match=message):
            Direction(vector, direction.reference, 3, -1)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CosmicError, match="is not a saved direction"):
        Direction.load(path)
    with pytest.raises(CosmicError, match="no file"):
        Direction.load(tmp_path / "nothing")


def test_a_direction_is_float32_on_the_cpu_and_its_own():
    vector, reference = torch.ones(6, dtype=torch.float64)[::2], torch.zeros(3, dtype=torch.bfloat16)
    found = Direction(vector, reference, 0, -1)
    assert found.vector.dtype == found.reference.dtype == torch.float32 and found.vector.is_contiguous()
    given = torch.ones(3, requires_grad=True)
    found = Direction(given, torch.zeros(3), 0, -1)
    with torch.no_grad():
        given.mul_(5)
    assert found.norm == pytest.approx(3**0.5) and not found.vector.requires_grad
    with pytest.raises(CosmicError, match="NaN or infinite"):
        Direction(torch.full((3,), 1e300, dtype=torch.float64), torch.zeros(3), 0, -1)


@pytest.mark.parametrize(
    ("layer", "position", "message"),
    [
        (-1, -1, "layer: found -1; layers count from 0"),
        (0, 0, "position: found 0; positions count from the end"),
        (True, -1, "layer: expected a whole number, found True"),
        (0, False, "position: expected a whole number, found False"),
    ],
)
def test_layer_and_position_of_a_direction_are_in_range(layer, position, message):
    with pytest.raises(CosmicError, match=message) as caught:
        Direction(torch.ones(3), torch.zeros(3), layer, position)
    assert "\n" not in str(caught.value)


def test_a_direction_of_a_deeper_model_does_not_fit(demo):
    with pytest.raises(CosmicError, match="layer 8, and the model width 128 and 8 layers"):
        Direction(torch.ones(128), torch.zeros(128), 8, -1).check(demo)


@pytest.mark.parametrize(
    ("layer", "position", "message"),
    [
        (-1, -1, "layer: found -1, and the candidates have layers 0 to 1"),
        (2, -1, "layer: found 2, and the candidates have layers 0 to 1"),
        (0, 0, "position: found 0, and the candidates have positions -3 to -1"),
        (0, -4, "position: found -4, and the candidates have positions -3 to -1"),
    ],
)
def test_candidates_give_what_they_have(layer, position, message):
    ones = torch.ones(2, 3, 4, dtype=torch.float64)
    candidates = Candidates(ones, 0 * ones, "example")
    with pytest.raises(CosmicError, match=message):
        candidates.direction(layer, position)
    if layer == 0:
        with pytest.raises(CosmicError, match=message):
            affine_edits(candidates, position=position)
    found = candidates.direction(1, -3)
    ones.mul_(7)
    assert found.norm == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": "[1, 2]"}, "is not a saved direction"),
        ({"settings": '"text"'}, "is not a saved direction"),
        ({"settings": "{"}, "is not a saved direction"),
        ({"layer": "3"}, "is not a saved direction"),
        ({"layer": 3.0}, "is not a saved direction"),
        ({"layer": -3}, "layer: found -3"),
        ({"position": 2}, "position: found 2"),
        ({"fingerprint": 3}, "is not a saved direction"),
        ({"extra": 1}, "is not a saved direction"),
        ({"layer": 4}, "says hook 'blocks.3.hook_resid_pre' and layer 4"),
    ],
)
def test_a_tampered_file_is_one_line(tmp_path, direction, change, message):
    path = tmp_path / "d.safetensors"
    direction.save(path)
    settings, tensors = read_sealed(path)
    if "settings" in change:
        save_file(tensors, path, change)
    else:  # whole, but other than what is written here
        write_sealed(path, tensors, {**settings, **change})
    with pytest.raises(CosmicError, match=message) as caught:
        Direction.load(path)
    assert "\n" not in str(caught.value)


def test_a_file_with_other_tensors_is_one_line(tmp_path, direction):
    path = tmp_path / "d.safetensors"
    direction.save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for tensors in ({"vector": direction.vector}, {"vector": torch.ones(2, 2), "reference": torch.ones(2, 2)}):
        save_file(tensors, path, metadata)
        with pytest.raises(CosmicError, match="direction: ") as caught:
            Direction.load(path)
        assert "\n" not in str(caught.value)


def test_a_random_direction_has_the_same_norm_and_another_way(direction):
    placebo = random_direction(direction, 1)
    assert placebo.norm == pytest.approx(direction.norm)
    assert abs(float(placebo.unit @ direction.unit)) < 0.5
    assert torch.equal(placebo.vector, random_direction(direction, 1).vector)
    assert not torch.equal(placebo.vector, random_direction(direction, 2).vector)


def test_completions_are_steered_from_the_first_token(demo, direction):
    # A huge push at the prompt alone changes the first token already.
    clean = complete(demo, ["How do I bake a pizza?"], max_new_tokens=1)
    assert complete(demo, ["How do I bake a pizza?"], Addition(direction, 50.0), max_new_tokens=1) != clean


def test_affine_concept_editing_everywhere_is_one_constant_along_the_direction(demo):
    generator = torch.Generator().manual_seed(0)
    direction = Direction(*torch.randn(2, 128, generator=generator), layer=3, position=-1)
    edit = AffineEverywhere(direction, alpha=0.5)
    constant = float(direction.reference @ direction.unit) + 0.5 * direction.norm
    ids = torch.tensor([[5, 6, 7, 8]])
    names = [f"blocks.{layer}.hook_resid_{at}" for layer in range(8) for at in ("pre", "mid", "post")]
    with steering(demo, edit):
        _, cache = demo.run_with_cache(ids)
        logits = demo(ids)
    assert all((cache[name] @ direction.unit - constant).abs().max() < 1e-3 for name in names)
    # By hand: the constant at the first block's input, and nothing written along the direction.
    unit, blocks = direction.unit, demo.original_model.model.layers
    ablate = lambda x: x - (x @ unit)[..., None] * unit  # noqa: E731
    hooks = [("blocks.0.hook_resid_pre", lambda x, hook: ablate(x) + constant * unit)]
    hooks += [
        (f"blocks.{layer}.hook_{part}_out", lambda x, hook: ablate(x))
        for layer in range(len(blocks))
        for part in ("attn", "mlp")
    ]
    with demo.hooks(fwd_hooks=hooks):
        assert (demo(ids) - logits).abs().max() < 1e-4
    with pytest.raises(CosmicError, match="reference: this direction has none"):
        AffineEverywhere(replace(direction, reference=None))
