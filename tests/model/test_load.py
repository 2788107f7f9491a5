import shutil

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

from cosmic_tl import CosmicError, CosmicOptions, load_model, mean_activations, select_cosmic
from cosmic_tl.model import model_fingerprint
from cosmic_tl.model.load import demo_path


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


def test_a_vocabulary_of_any_size_has_a_fingerprint(demo):
    """Beyond 2**24 elements float32 no longer holds every index."""
    other = load_model("demo", device="cpu")
    other.original_model.lm_head.weight = torch.nn.Parameter(torch.zeros(2**17 + 1, 128), requires_grad=False)
    fingerprint = model_fingerprint(other)
    assert fingerprint != model_fingerprint(demo)
    with torch.no_grad():
        other.original_model.lm_head.weight[-4000:] = 1.0
    assert model_fingerprint(other) != fingerprint


def _in_place(parameter, module):
    with torch.no_grad():
        parameter.mul_(1.1)


def _behind_its_back(parameter, module):
    parameter.data.mul_(1.1)  # which counts no version


def _replaced(parameter, module):
    module.weight = torch.nn.Parameter(parameter.detach() * 1.1)


def _loaded(parameter, module):
    module.load_state_dict({"weight": parameter.detach() * 1.1})


@pytest.mark.parametrize("change", [_in_place, _behind_its_back, _replaced, _loaded])
def test_the_fingerprint_changes_with_the_weights(demo, change):
    other = load_model("demo", device="cpu")
    assert model_fingerprint(other) == model_fingerprint(demo)
    module = other.original_model.model.norm
    module = getattr(module, "_original_component", module)
    change(module.weight, module)
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
        ({"name_or_path": "no/such/model"}, "model: no file or directory 'no/such/model'; give "),
        ({"name_or_path": "demo", "dtype": "int3"}, "dtype: unknown name 'int3'"),
        ({"name_or_path": "demo", "device_map": "auto", "device": "cpu"}, "model: could not load 'demo'"),
    ],
)
def test_bad_models_are_named_in_one_line(args, message):
    with pytest.raises(CosmicError, match=message) as caught:
        load_model(**args)
    assert "\n" not in str(caught.value)


def test_an_empty_directory_is_no_model(tmp_path):
    with pytest.raises(CosmicError, match=r"has no config\.json; give a directory in Hugging Face format"):
        load_model(tmp_path)
