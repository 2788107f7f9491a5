"""Models spread over memory and disk."""

import pytest

from cosmic_tl import AffineEdit, CosmicOptions, complete, load_model, load_prompts, select_cosmic
from cosmic_tl.model.load import demo_path


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    places = {f"model.layers.{layer}": "disk" if layer % 3 == 2 else "cpu" for layer in range(8)}
    places |= {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    return load_model(demo_path(), device_map=places, offload_folder=str(tmp_path_factory.mktemp("offload")))


@pytest.mark.parametrize("mode", ["affine", "linear"])
def test_a_model_offloaded_to_disk_gives_the_same_selection(demo, spread, mode):
    assert any(param.device.type == "meta" for param in spread.original_model.parameters())
    options = CosmicOptions(mode=mode, n_train=20, n_val=8, max_kl=10.0, n_resamples=0)
    prompts = load_prompts("demo")
    here, there = (select_cosmic(model, prompts, options) for model in (demo, spread))
    assert (here.direction.layer, here.direction.position) == (there.direction.layer, there.direction.position)
    for column in ("s_comply", "s_refuse", "kl"):
        assert here.table[column].isna().equals(there.table[column].isna())
        assert (here.table[column] - there.table[column]).abs().max() < 1e-4
    edit = AffineEdit(here.direction, 0.0)
    asked = prompts.side("positive", "test", 3)
    assert complete(spread, asked, edit) == complete(demo, asked, edit)
