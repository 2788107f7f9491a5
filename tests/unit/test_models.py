import shutil

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

from cosmic_tl import CosmicError, CosmicOptions, load_model, mean_activations, model_fingerprint, select_cosmic
from cosmic_tl.models import demo_path


def test_the_demo_loads_like_any_local_directory(demo, tmp_path):
    shutil.copytree(demo_path(), tmp_path / "mine")
    copy = load_model(tmp_path / "mine", device="cpu")
    assert isinstance(copy, TransformerBridge) and not copy.training
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        assert torch.equal(copy(ids), demo(ids))
    assert model_fingerprint(copy) == model_fingerprint(demo)


def test_a_loaded_hugging_face_model_passes_through(demo):
    plain = AutoModelForCausalLM.from_pretrained(demo_path(), dtype=torch.float32)
    assert model_fingerprint(load_model(demo_path(), hf_model=plain)) == model_fingerprint(demo)


def test_the_fingerprint_changes_with_the_weights(demo):
    other = load_model("demo", device="cpu")
    with torch.no_grad():
        next(other.original_model.parameters()).mul_(1.1)
    assert model_fingerprint(other) != model_fingerprint(demo)


def test_half_precision_keeps_means_and_scores_in_double(demo, prompts):
    half = load_model("demo", device="cpu", dtype="bfloat16")
    texts = prompts.side("positive", "train", 8)
    means, exact = (mean_activations(model, texts) for model in (half, demo))
    assert means.resid_pre.dtype == torch.float64
    assert (means.resid_pre - exact.resid_pre).abs().max() < 0.05 * exact.resid_pre.abs().max()
    table = select_cosmic(half, prompts, CosmicOptions(n_train=16, n_val=8, max_kl=50.0)).table
    assert table[table.layer > 0].score.notna().all()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"name_or_path": "no/such/model"}, "model: could not load 'no/such/model'"),
        ({"name_or_path": "demo", "dtype": "int3"}, "dtype: unknown name 'int3'"),
        ({"name_or_path": "demo", "device_map": "auto", "device": "cpu"}, "model: could not load 'demo'"),
    ],
)
def test_bad_models_are_named_in_one_line(args, message):
    with pytest.raises(CosmicError, match=message) as caught:
        load_model(**args)
    assert "\n" not in str(caught.value)


def test_an_empty_directory_is_no_model(tmp_path):
    with pytest.raises(CosmicError, match="could not load"):
        load_model(tmp_path)
