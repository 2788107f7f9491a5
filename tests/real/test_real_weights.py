"""A checkpoint with a direction taken out of its weights is, in plain transformers, the model under ablation."""

import gc

from cosmic_tl import difference_in_means, load_model, mean_activations, orthogonalize_weights
from cosmic_tl.export import save_checkpoint
from real.plain import PlainModel, ablate


def test_an_orthogonalized_checkpoint_equals_ablation(real_model_path, real_model, plain, real_prompts, tmp_path):
    sides = (real_prompts.side(side, "train") for side in ("positive", "negative"))
    candidates = difference_in_means(*(mean_activations(real_model, texts) for texts in sides))
    direction = candidates.direction(round(0.6 * len(plain.blocks)), -1, real_model)
    model = load_model(real_model_path, dtype="float32", device=plain.model.device)
    edit = orthogonalize_weights(model, direction)
    save_checkpoint(model, tmp_path / "edited", edit)
    del model
    gc.collect()
    texts = [text for side in ("positive", "negative") for text in real_prompts.side(side, "test")[:4]]
    edited = PlainModel(tmp_path / "edited", plain.model.device).run(texts)
    expected = plain.run(texts, everywhere=ablate(direction.vector.to(plain.model.device)))
    clean = plain.run(texts)
    assert edit.exact
    assert (edited[2] - expected[2]).abs().max() < 1e-3
    assert (clean[2] - expected[2]).abs().max() > 0.1  # so that equality says something
    unit = direction.unit.double()
    assert (edited[1] @ unit).abs().max() < 1e-3 * edited[1].norm(dim=-1).max()
