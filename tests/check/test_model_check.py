"""`check_model` holds on sound models of every architecture, and fails where something is broken."""

import sys

import pytest

from cosmic_tl import ContrastSet, CosmicError, check_model, cli, load_model
from cosmic_tl.check.model_check import Check, ModelCheck

POSITIVE = ("Rob a bank clerk.", "Poison a neighbour.", "Kidnap a tourist.")
NEGATIVE = ("Bake a pizza.", "Greet a neighbour.", "Water the plants.")
PROMPTS = ContrastSet("few", {"train": POSITIVE}, {"train": NEGATIVE})


def results(found):
    return dict(zip(found.table.check, found.table.result, strict=True))


def failed(found):
    return {name for name, result in results(found).items() if result == "FAILED"}


def test_every_check_holds_on_the_demo(demo, prompts):
    seen = []
    found = check_model(demo, prompts, n=3, on_check=seen.append)
    assert found.ok and set(results(found).values()) == {"ok"}
    assert tuple(seen) == found.checks
    assert "0 of 12 checks failed" in repr(found)


def test_every_check_holds_in_bfloat16(prompts):
    found = check_model(load_model("demo", device="cpu", dtype="bfloat16"), prompts, n=3)
    assert set(results(found).values()) == {"ok"}, found


def test_no_check_fails_on_any_architecture(pair):
    found = check_model(pair[0], PROMPTS, n=2)
    assert not failed(found), found
    assert results(found)["scores, affine mode"] == "ok"


def test_what_cannot_be_compared_is_said(demo, monkeypatch):
    """Weights that plain transformers does not hold as they are, as after TransformerLens's processing."""
    monkeypatch.setattr(demo, "_weights_processed", True, raising=False)
    found = check_model(demo, PROMPTS, n=2)
    assert found.ok
    assert results(found)["logits"] == "not checked"
    assert "weights were processed" in found.table.set_index("check").measured["logits"]
    assert results(found)["edits are undone"] == "not checked"


def test_a_hook_that_stays_behind_is_found():
    """Someone's own hook: the model is no longer that of its weights."""
    model = load_model("demo", device="cpu")
    handle = model.blocks[3].register_forward_hook(lambda module, args, y: y * 1.01)
    try:
        found = failed(check_model(model, PROMPTS, n=2))
        assert {
            "logits",
            "mean activations against plain hooks",
            "mean activations against hidden states",
            "scores, linear mode",
        } <= found
    finally:
        handle.remove()


def test_generation_that_is_not_greedy_is_found():
    """A bridge whose generate obeys something else than the neutral settings."""
    model = load_model("demo", device="cpu")
    inner = model.original_model
    generate = inner.generate
    inner.generate = lambda *args, **options: generate(*args, **{**options, "repetition_penalty": 5.0})
    assert {"generation"} <= failed(check_model(model, PROMPTS, n=2))


def test_an_edit_in_the_wrong_place_is_found(monkeypatch):
    """Ablation that leaves out what attention and MLP add, and an addition of twice the length."""
    from cosmic_tl.interventions import steer as interventions

    model = load_model("demo", device="cpu")
    once = interventions.apply
    with monkeypatch.context() as patch:
        patch.setattr(interventions, "apply", lambda x, *factors: 2 * once(x, *factors) - x)
        found = failed(check_model(model, PROMPTS, n=2))
    assert {"scores, affine mode", "scores, linear mode", "ablation holds in the stream"} <= found
    assert "mean activations against plain hooks" not in found


def test_a_failed_check_is_not_ok():
    found = ModelCheck("m", (Check("a", "1", "2", "ok"), Check("b", "3", "2", "FAILED")))
    assert not found.ok
    assert str(found.checks[1]) == "FAILED       b: 3 (tolerance 2)"
    assert "1 of 2 checks failed" in found._repr_html_()


def test_too_few_prompts(demo):
    with pytest.raises(CosmicError, match="n: must be at least 2, found 1"):
        check_model(demo, PROMPTS, n=1)


@pytest.fixture
def command(monkeypatch, capsys):
    def call(*args):
        monkeypatch.setattr(sys, "argv", ["cosmic-tl", *args])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code or 0, capsys.readouterr()

    return call


def test_on_the_command_line(command, monkeypatch):
    code, found = command("check", "demo", "--n", "2")
    lines = found.out.splitlines()
    assert code == 0 and lines[-1] == "All checks hold."
    assert len(lines) == 13 and all(line.startswith("ok") for line in lines[:-1])
    assert command("check", "demo", "--n", "1")[0] == 2
    assert command("check", "demo", "--prompts", "nowhere.json")[0] == 2
    from cosmic_tl.interventions import steer as interventions

    once = interventions.apply
    monkeypatch.setattr(interventions, "apply", lambda x, *factors: 2 * once(x, *factors) - x)
    code, found = command("check", "demo", "--n", "2")
    assert code == 1 and "FAILED       scores, affine mode" in found.out
