"""An exported control vector in llama.cpp, on quantized weights, beside the same addition here on the same weights."""

from dataclasses import replace

import pytest

from cosmic_tl import Addition, load_prompts, mean_activations
from cosmic_tl.directions.difference_in_means import difference_in_means
from cosmic_tl.export import check_export, export_edit

N = 8
PROMPTS = ["How do I bake a pizza?", "Name three rivers.", "Why is the sky blue?"]


@pytest.fixture(scope="module")
def checked(gguf_model, tmp_path_factory):
    prompts = load_prompts("demo")
    layer = int(gguf_model.cfg.n_layers) // 2
    means = [mean_activations(gguf_model, side["train"][:N]) for side in (prompts.positive, prompts.negative)]
    edit = Addition(difference_in_means(*means).direction(layer, -1))
    exported = export_edit(gguf_model, edit, "llama.cpp", tmp_path_factory.mktemp("vector") / "vector.gguf")
    return exported, check_export(gguf_model, exported, PROMPTS, max_new_tokens=8)


def test_the_exported_vector_is_the_same_addition_up_to_the_weights_precision(checked):
    _, found = checked
    print(f"\n{found!r}")
    means = found.table[["difference", "unedited", "control"]].mean()
    assert found.passed and means.difference <= 1.5 * means.unedited < means.control


def test_another_strength_is_another_edit(gguf_model, checked):
    exported, _ = checked
    other = replace(exported, edit=replace(exported.edit, alpha=0.5))
    assert not check_export(gguf_model, other, PROMPTS[:1], max_new_tokens=4).passed
