"""Models that are damaged, or whose parts do not fit together: each is refused by name, and none gives a result."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cosmic_tl import CosmicError, CosmicOptions, complete, load_model, load_prompts, select_cosmic
from cosmic_tl.model.load import demo_path

MIDDLE = "model.layers.3.mlp.down_proj.weight"
Change = Callable[[Path], object]


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def apply(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(
            {name: x.contiguous() for name, x in found.items()}, folder / "model.safetensors", metadata={"format": "pt"}
        )

    return apply


def setting(file: str, **values: Any) -> Change:
    def apply(folder: Path) -> None:
        found = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(found | values))

    return apply


def template(text: str) -> Change:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def fewer_layers(folder: Path) -> None:
    kinds = json.loads((folder / "config.json").read_text())["layer_types"]
    setting("config.json", num_hidden_layers=4, layer_types=kinds[:4])(folder)


def small_vocabulary(folder: Path) -> None:
    setting("config.json", vocab_size=64)(folder)
    weights(lambda w: w.update({name: x[:64] for name, x in w.items() if x.shape[0] == 2048}))(folder)


CASES: dict[str, tuple[Change, str]] = {
    "a weight is missing": (weights(lambda w: w.pop(MIDDLE)), f"lacks 1 of its weights ({MIDDLE})"),
    "a weight has another shape": (
        weights(lambda w: w.update({MIDDLE: w[MIDDLE][:8]})),
        f"have another shape than config.json says ({MIDDLE})",
    ),
    "more layers than it says": (
        fewer_layers,
        "holds 48 weights beyond those that config.json asks for (model.layers.4.",
    ),
    "a wider model than it says": (setting("config.json", hidden_size=127), "have another shape than config.json says"),
    "other heads than it says": (
        setting("config.json", num_key_value_heads=3),
        "have another shape than config.json says",
    ),
    "an empty file": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "could not load"),
    "a cut file": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-5000]),
        "could not load",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "could not load"),
    "weights that are no numbers": (weights(lambda w: w[MIDDLE].fill_(float("nan"))), "its logits are not numbers"),
    "weights that are all zero": (
        weights(lambda w: [x.zero_() for x in w.values()]),
        "its last layer gives the same for positive and negative prompts",
    ),
    "a small vocabulary": (small_vocabulary, "and the model knows 64; give model and tokenizer that belong together"),
    "no tokenizer": (
        lambda folder: [path.unlink() for path in [*folder.glob("tokenizer*"), folder / "chat_template.jinja"]],
        "tokenizer",
    ),
    "a broken tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{"), "could not load"),
    "a broken config": (lambda folder: (folder / "config.json").write_text("{"), "could not load"),
    "an empty config": (lambda folder: (folder / "config.json").write_text("{}"), "could not load"),
    "a list as config": (lambda folder: (folder / "config.json").write_text("[]"), "could not load"),
    **{
        f"{name} = {value!r}": (setting("config.json", **{name: value}), "could not load")
        for name, value in (
            ("num_hidden_layers", 0),
            ("num_hidden_layers", -1),
            ("num_hidden_layers", "x"),
            ("hidden_size", 0),
            ("num_attention_heads", 0),
            ("vocab_size", 0),
            ("model_type", "nope"),
            ("rms_norm_eps", "a"),
        )
    },
    "no context": (setting("config.json", max_position_embeddings=0), "the model's context holds 0"),
    **{
        f"template {text!r}": (template(text), said)
        for text, said in (
            ("{{ raise_exception('no users') }}", "it rejects the user message 'sphinx of black quartz' (no users)"),
            ("{% for", "it rejects the user message"),
            ("{{ messages[7].content.x }}", "it rejects the user message"),
            ("{{ 1/0 }}", "(division by zero)"),
            ("{{ messages + 1 }}", "it rejects the user message"),
            ("{% for i in range(100000000) %}x{% endfor %}", "(Range too big"),
            ("{% include 'x' %}", "it rejects the user message"),
            ("{{ ''.__class__.__mro__ }}", "it rejects the user message"),
            ("hello", "the user's message is missing from the prompt, or changed in it"),
            ("{{ messages[0].content | upper }}", "the user's message is missing from the prompt, or changed in it"),
            (
                "{{ messages[0].content }}{% if 'bread' in messages[0].content %}{{ 1/0 }}{% endif %}",
                "it rejects the user message 'How do I bake bread?'",
            ),
        )
    },
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_by_name(tmp_path: Path, name: str) -> None:
    change, message = CASES[name]
    folder = tmp_path / "model"
    shutil.copytree(demo_path(), folder)
    change(folder)
    with pytest.raises(CosmicError) as error:
        _use(folder)
    assert message in str(error.value) and "\n" not in str(error.value)


def _use(folder: Path) -> None:
    model = load_model(folder, device="cpu")
    complete(model, ["How do I bake bread?"], max_new_tokens=4)
    select_cosmic(model, load_prompts("demo"), CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0))


def test_weights_that_are_of_no_use_are_a_warning(tmp_path: Path) -> None:
    shutil.copytree(demo_path(), tmp_path / "model")
    weights(lambda w: w.update({"vision.tower": torch.ones(3)}))(tmp_path / "model")
    with pytest.warns(UserWarning, match=r"1 weights are not used \(vision\.tower\)"):
        model = load_model(tmp_path / "model", device="cpu")
    assert complete(model, ["hello"]) == complete(load_model("demo", device="cpu"), ["hello"])


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "", "meta"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(CosmicError, match=f"device: '{device}' cannot be used here") as error:
        load_model("demo", device=device)
    assert "\n" not in str(error.value)


def test_activations_that_overflow_are_named_with_their_layer(demo: Any) -> None:
    model = load_model("demo", device="cpu")
    with torch.no_grad():
        model.original_model.model.layers[5].mlp.down_proj.weight.fill_(float("inf"))
    prompts = load_prompts("demo")
    with pytest.raises(CosmicError, match="its activations at layer 5 are not finite"):
        select_cosmic(model, prompts, CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0))
