"""A text where a list of texts is due is one clear error, and no list of its characters."""

import pytest
import torch

import cosmic_tl as ct
from cosmic_tl.experiments.cost import measure_cost
from cosmic_tl.interventions.erasers import fit_eraser

DIRECTION = ct.Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
TEXT = "Bake a pie."
SETS = (["Rob a bank clerk."], [TEXT])

CALLS = {
    "complete": lambda m: ct.complete(m, TEXT),
    "mean_activations": lambda m: ct.mean_activations(m, TEXT),
    "cache_activations": lambda m: ct.cache_activations(m, TEXT),
    "refusal_scores": lambda m: ct.metrics.refusal_scores(m, TEXT, ct.metrics.refusal_tokens(m, ["I"])),
    "refusal_tokens": lambda m: ct.metrics.refusal_tokens(m, TEXT),
    "find_refusal_tokens": lambda m: ct.metrics.find_refusal_tokens(m, (TEXT, SETS[1])),
    "completion_cross_entropy": lambda m: ct.metrics.completion_cross_entropy(m, SETS[0], TEXT),
    "measure_effects": lambda m: ct.measure_effects(
        m, (SETS[0], TEXT), conditions=ct.experiments.standard_conditions(DIRECTION, mode="affine")
    ),
    "sweep": lambda m: ct.sweep(m, (TEXT, SETS[1]), DIRECTION, alphas=[1.0]),
    "layer_similarities": lambda m: ct.layer_similarities(m, (TEXT, SETS[1]), DIRECTION, mode="affine"),
    "pca_of_classes": lambda m: ct.pca_of_classes(m, (SETS[0], TEXT)),
    "fit_eraser": lambda m: fit_eraser(m, (TEXT, SETS[1]), layers=[3]),
    "measure_cost, texts": lambda m: measure_cost(m, ct.Ablation(DIRECTION), texts=TEXT),
    "measure_cost, prompts": lambda m: measure_cost(m, ct.Ablation(DIRECTION), prompts=TEXT),
    "suffix_groups": lambda m: ct.suffixes.suffix_groups(m, TEXT, SETS[1], " x"),
    "random_suffixes": lambda m: ct.suffixes.random_suffixes(m, TEXT, n_tokens=2),
    "find_suffix": lambda m: ct.suffixes.find_suffix(m, SETS[0], TEXT),
    "append_to": lambda m: ct.suffixes.Suffix(" x", (5,), (), (), (), (), ()).append_to(TEXT),
    "refusal_rate": lambda m: ct.judges.refusal_rate(TEXT),
    "judge, prompts": lambda m: ct.SubstringJudge()(TEXT, SETS[1]),
    "judge, completions": lambda m: ct.SubstringJudge()(SETS[0], TEXT),
    "model judge": lambda m: ct.judges.ModelJudge(m, ct.judges.LLAMA_GUARD_3)(SETS[0], TEXT),
    "judge_refusal": lambda m: ct.judges.judge_refusal(TEXT, TEXT),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_text_is_no_list_of_prompts(demo, call):
    with pytest.raises(
        ct.CosmicError,
        match=r"^\w+: (must be|expected) .*list.* of texts, found the text 'Bake a pie\.'( at \d)?; pass",
    ) as caught:
        CALLS[call](demo)
    assert "\n" not in str(caught.value)


def test_what_else_is_no_text_is_named(demo):
    with pytest.raises(ct.CosmicError, match="found NoneType; pass a list"):
        ct.errors.check_texts("prompts", None)
    with pytest.raises(ct.CosmicError, match="found int at 1"):
        ct.errors.check_texts("prompts", ["a", 1])
