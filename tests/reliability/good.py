"""Real objects of the demo model, for calls of which one argument is wrong."""

import tempfile
from typing import Any


def namespace() -> dict[str, Any]:
    """What the calls in `bad_calls.json` may name."""
    import plotly.graph_objects as go
    import torch

    import cosmic_tl as ct
    from cosmic_tl.activations import class_means
    from cosmic_tl.data.behaviours import AnswerPair, BehaviourSet
    from cosmic_tl.experiments.conditions import standard_conditions
    from cosmic_tl.experiments.layer_similarity import layer_similarities
    from cosmic_tl.metrics.refusal_score import refusal_tokens

    model, prompts = ct.load_model("demo", device="cpu"), ct.load_prompts("demo")
    few = prompts.side("positive", "test", 2), prompts.side("negative", "test", 2)
    options = ct.CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0)
    selection = ct.select_cosmic(model, prompts, options)
    pair = AnswerPair("Well?", "Yes", "No")
    return {
        "ct": ct,
        "torch": torch,
        "model": model,
        "prompts": prompts,
        "options": options,
        "selection": selection,
        "direction": selection.direction,
        "candidates": selection.candidates,
        "positions": selection.positions,
        "edit": ct.Ablation(selection.direction),
        "means": class_means(model, few),
        "effects": ct.measure_effects(
            model, few, conditions=standard_conditions(selection, n_placebos=1), max_new_tokens=2
        ),
        "similarity": layer_similarities(model, few, selection),
        "tokens": refusal_tokens(model, ["I"]),
        "pairs": [pair],
        "behaviour": BehaviourSet("agreement", {"train": (pair,), "test": (pair,)}),
        "settings": ct.RunSettings(options, n_test=1, max_new_tokens=2, n_placebos=1),
        "judge": ct.judges.SubstringJudge(),
        "groups": {"harmful": few[0]},
        "logits": torch.zeros(1, 8),
        "figure": go.Figure(),
        "folder": tempfile.mkdtemp(),
    }
