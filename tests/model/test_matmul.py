"""Matrix products by oneDNN: torch's own results up to rounding, and only where they are wanted."""

import pytest
import torch
from torch.nn.functional import linear

from cosmic_tl import Ablation, Direction, complete
from cosmic_tl.interventions.steer import intervention_hooks
from cosmic_tl.metrics.likelihood import continuation_token_nats
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.forward import next_token_logits
from cosmic_tl.model.matmul import ONEDNN, WORTH_ONEDNN, FastLinear, fast_linear


def by_onednn(work):
    """Whether a call goes to oneDNN, and its result."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = work()
    return any("mkldnn" in event.key for event in profile.key_averages()), found


def chance(*shape, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(**options)


@pytest.mark.parametrize("bias", [None, chance(48)], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    "view", [lambda x: x, lambda x: x[:, -1:], lambda x: x.transpose(0, 1)], ids=["", "last", "turned"]
)
def test_products_are_equal_up_to_rounding(view, bias):
    x, weight = view(chance(20, 30, 64)), chance(48, 64)
    expected = linear(x.double(), weight.double(), None if bias is None else bias.double())
    with torch.inference_mode(), FastLinear():
        used, found = by_onednn(lambda: linear(x, weight, bias))
    assert used == ONEDNN
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_what_does_not_fit_stays_as_it_was():
    weight = chance(48, 64)
    few, many = chance(WORTH_ONEDNN - 1, 64), chance(WORTH_ONEDNN, 64)
    with FastLinear():
        assert not by_onednn(lambda: linear(many, weight))[0]  # a gradient may be asked for
        with torch.inference_mode():
            assert by_onednn(lambda: linear(many, weight))[0] == ONEDNN
            used, found = by_onednn(lambda: linear(few, weight))
            double = linear(many.double(), weight.double())
    assert not used
    assert torch.equal(found, linear(few, weight))
    assert torch.equal(double, linear(many.double(), weight.double()))
    trained = torch.nn.Linear(64, 48)
    with FastLinear():
        trained(many).sum().backward()
    assert trained.weight.grad.abs().sum() > 0


def on(monkeypatch, vectors):
    """As if this were a processor with these vector units."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)


@pytest.mark.parametrize(("vectors", "used"), [("AVX512", ONEDNN), ("AVX2", False), ("DEFAULT", False)])
def test_it_is_used_where_it_is_faster(vectors, used, monkeypatch):
    on(monkeypatch, vectors)
    with torch.inference_mode(), fast_linear():
        assert by_onednn(lambda: linear(chance(WORTH_ONEDNN, 64), chance(48, 64)))[0] == used


def test_a_steered_models_passes_and_answers_are_the_same_either_way(demo, prompts, monkeypatch):
    edit = Ablation(Direction(chance(128), None, layer=3, position=-1))
    texts = prompts.positive["test"][:20]
    rows = tokenize(demo, texts)
    batch = next(batches(demo, rows, len(rows)))
    works = [
        lambda: next_token_logits(demo, batch, intervention_hooks(demo, edit)),
        lambda: complete(demo, texts, edit, max_new_tokens=3),
        lambda: continuation_token_nats(demo, rows, [row[:3] for row in rows], edit),
    ]
    found = {}
    for vectors in ("AVX512", "AVX2"):
        on(monkeypatch, vectors)
        used, found[vectors] = zip(*map(by_onednn, works), strict=True)
        assert set(used) == {ONEDNN and vectors == "AVX512"}
    (logits, answers, nats), (other_logits, other_answers, other_nats) = found.values()
    assert (logits - other_logits).abs().max() < 1e-4 * other_logits.abs().max()
    assert answers == other_answers
    assert torch.tensor(nats).allclose(torch.tensor(other_nats), atol=1e-3)
