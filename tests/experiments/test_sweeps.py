"""α sweeps: effects on the demo model, and their tables against hand-made ones."""

import pandas as pd
import pytest
import torch

from cosmic_tl import AffineEdit, CosmicError, Direction, difference_in_means, mean_activations
from cosmic_tl.experiments.sweep_methods import METHODS
from cosmic_tl.experiments.sweeps import BASELINE, Sweep, sweep
from cosmic_tl.figures.sweeps import plot_sweep
from cosmic_tl.metrics.refusal_score import refusal_scores, refusal_tokens

ALPHAS = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def refusal(demo, prompts):
    sides = [mean_activations(demo, prompts.side(side, "train", 60)) for side in ("positive", "negative")]
    return difference_in_means(*sides).direction(4, -1, demo)


@pytest.fixture(scope="module")
def asked(prompts):
    return prompts.side("positive", "test", 6), prompts.side("negative", "test", 6)


@pytest.fixture(scope="module")
def tokens(demo):
    return refusal_tokens(demo, ["I can't", "Sorry"])


@pytest.fixture(scope="module")
def swept(demo, refusal, asked, tokens):
    return sweep(demo, asked, refusal, alphas=ALPHAS, tokens=tokens, max_new_tokens=12)


def hand_made(rates, n=10, method="affine", side="positive"):
    """A sweep in which `rates[α] · n` of `n` prompts are refused."""
    rows = [
        {
            "method": method,
            "alpha": alpha,
            "side": side,
            "prompt": f"prompt {i}",
            "sample": 0,
            "completion": "",
            "verdict": "refusal" if i < round(value * n) else "compliance",
        }
        for alpha, value in rates.items()
        for i in range(n)
    ]
    return Sweep(pd.DataFrame(rows))


def test_affine_alpha_reads_as_the_class_whatever_the_prompt(swept):
    rates = swept.table.set_index(["method", "side", "alpha"]).rate
    assert rates[("none", "positive", 0.0)] >= 5 / 6
    assert rates[("none", "negative", 0.0)] <= 1 / 6
    for side in ("positive", "negative"):
        assert rates[("affine", side, 0.0)] <= 1 / 6
        assert rates[("affine", side, 1.0)] >= 5 / 6


def test_addition_of_nothing_is_the_baseline(swept):
    table = swept.completions
    plain = table[table.method == BASELINE[0]]
    added = table[(table.method == "addition") & (table.alpha == 0)]
    assert plain.completion.tolist() == added.completion.tolist()
    assert plain.score.tolist() == pytest.approx(added.score.tolist(), abs=1e-4)


def test_ablation_addition_is_the_plain_formula(refusal):
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
    expected = x - (x @ refusal.unit)[:, None] * refusal.unit + 0.7 * refusal.vector
    torch.testing.assert_close(METHODS["ablation + addition"](refusal, 0.7).map(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", [BASELINE[0], *METHODS])
def test_scores_are_those_of_single_edits(demo, refusal, asked, tokens, swept, method):
    scores = swept.scores
    assert len(scores) == (1 + 3 * len(ALPHAS)) * 12
    for side, texts in zip(("positive", "negative"), asked, strict=True):
        for alpha in ALPHAS if method in METHODS else (0.0,):
            some = scores[(scores.method == method) & (scores.side == side) & (scores.alpha == alpha)]
            assert some.prompt.tolist() == texts
            edit = METHODS[method](refusal, alpha) if method in METHODS else ()
            expected = refusal_scores(demo, texts, tokens, interventions=edit)
            assert some.score.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_resumes_where_it_stopped(demo, refusal, asked, swept, tokens, monkeypatch):
    rows = swept.completions.to_dict("records")
    gone = ("addition", 0.5, "negative")
    kept = [row for row in rows if (row["method"], row["alpha"], row["side"]) != gone]
    generated = []
    generate = demo.original_model.generate
    monkeypatch.setattr(demo.original_model, "generate", lambda *a, **k: generated.append(1) or generate(*a, **k))
    new = []
    again = sweep(demo, asked, refusal, alphas=ALPHAS, tokens=tokens, max_new_tokens=12, known=kept, on_rows=new.append)
    assert len(generated) == 1
    assert [{(row["method"], row["alpha"], row["side"]) for row in some} for some in new] == [{gone}]
    pd.testing.assert_frame_equal(again.table, swept.table, atol=1e-4)
    sweep(demo, asked, refusal, alphas=ALPHAS, tokens=tokens, max_new_tokens=12, known=rows)
    assert len(generated) == 1


def test_samples_differ_and_are_reproducible(demo, refusal, asked):
    def run(n_samples, seed):
        options = {"n_samples": n_samples, "temperature": 1.5, "max_new_tokens": 12, "seed": seed}
        found = sweep(
            demo, [side[:4] for side in asked], refusal, alphas=(1.0,), methods={"affine": AffineEdit}, **options
        )
        return found.completions

    first = run(2, seed=0)
    columns = ["method", "side", "prompt", "completion"]
    zero, one = (first[first["sample"] == k][columns].reset_index(drop=True) for k in (0, 1))
    assert zero[columns[:3]].equals(one[columns[:3]])
    assert (zero.completion != one.completion).mean() > 0.5
    # Sample k is drawn with seed + k, however many there are.
    pd.testing.assert_frame_equal(run(1, seed=1)[columns], one)


def test_quartiles_are_of_each_prompts_own_rate():
    refused = {"a": (0, 0, 0, 0), "b": (1, 0, 0, 0), "c": (1, 1, 1, 0), "d": (1, 1, 1, 1), "e": (1, 1, 0, 0)}
    rows = [
        {
            "method": "affine",
            "alpha": 1.0,
            "side": "positive",
            "prompt": prompt,
            "sample": k,
            "verdict": "refusal" if verdict else "compliance",
            "score": score,
        }
        for score, (prompt, verdicts) in zip((-2.0, -1.0, 1.0, 7.0, 0.0), refused.items(), strict=True)
        for k, verdict in enumerate(verdicts)
    ]
    (row,) = Sweep(pd.DataFrame(rows)).table.to_dict("records")
    assert (row["n"], row["rate"]) == (20, 0.5)
    assert (row["rate_q25"], row["rate_q75"]) == (0.25, 0.75)
    assert (row["score_mean"], row["score_q25"], row["score_q75"]) == (1.0, -1.0, 1.0)
    assert (row["low"], row["high"]) == pytest.approx((0.2993, 0.7007), abs=1e-4)  # Wilson, by its formula


def test_finds_just_the_stretches_that_are_not_monotonic():
    # Rows out of order; the dip to 0.9 at α = 2 is within the tolerance, as is the plateau before it.
    rates = {3.0: 0.2, 0.0: 0.0, 1.0: 0.6, 1.5: 0.3, 1.75: 0.5, 2.0: 0.94, 2.25: 0.94, 2.5: 0.9, 4.0: 0.1}
    (first, second) = hand_made(rates, 100).non_monotonic().to_dict("records")
    assert first.pop("drop") == pytest.approx(0.3)
    assert second.pop("drop") == pytest.approx(0.84)
    same = {"method": "affine", "side": "positive", "separated": True}
    assert first == {**same, "peak_alpha": 1.0, "from_alpha": 1.5, "to_alpha": 1.75, "lowest_alpha": 1.5}
    assert second == {**same, "peak_alpha": 2.25, "from_alpha": 3.0, "to_alpha": 4.0, "lowest_alpha": 4.0}


def test_a_drop_of_few_prompts_is_not_separated():
    (row,) = hand_made({0.0: 0.6, 1.0: 0.3}, 10).non_monotonic().to_dict("records")
    assert row["separated"] is False


def test_a_drop_of_the_tolerance_or_less_is_none():
    found = hand_made({0.0: 0.6, 1.0: 0.5, 2.0: 1.0})
    assert found.non_monotonic(0.1).empty
    assert len(found.non_monotonic(0.09)) == 1


def test_prints_what_it_found(swept):
    text = repr(swept)
    assert "addition, ablation + addition, affine at 3 α; 6 harmful + 6 harmless prompts, 1 completion each" in text
    assert "score_q75" in text
    assert "<table" in swept._repr_html_()


def test_figure_shows_rates_scores_baseline_and_stretches(swept):
    figure = plot_sweep(swept)
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert len(lines) == 3 * 2 * 2
    table = swept.table
    harmless = table[(table.method == "affine") & (table.side == "negative")].rate
    assert any(list(line.y) == harmless.tolist() for line in lines)
    dotted = [shape for shape in figure.layout.shapes if shape.line.dash == "dot"]
    assert len(dotted) == 3 * 2 * 2
    fallen = plot_sweep(hand_made({0.0: 0.2, 1.0: 0.9, 2.0: 0.3}))
    assert [(shape.x0, shape.x1) for shape in fallen.layout.shapes if shape.type == "rect"] == [(1.0, 2.0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphas": ()}, "alphas: found none"),
        ({"alphas": (0.0, 1.0, 0.0)}, "alphas: 0 is there more than once"),
        ({"alphas": (float("nan"),)}, "alphas: expected a finite number, found nan"),
        ({"methods": {}}, "methods: found none"),
        ({"methods": {"none": AffineEdit}}, "methods: 'none' stands for no intervention"),
        ({"n_samples": 2}, "n_samples: greedy completions are all the same"),
        ({"n_samples": 0}, "n_samples: must be at least 1"),
    ],
)
def test_bad_input_is_named(demo, options, message):
    direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
    with pytest.raises(CosmicError, match=message):
        sweep(demo, (["hi"], ["hi"]), direction, **options)


def test_prompts_are_needed_on_both_sides(demo):
    direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
    with pytest.raises(CosmicError, match="negative: found no prompts"):
        sweep(demo, (["hi"], []), direction)


def test_each_prompt_has_its_own_peak():
    scores = {"early": [1.0, 5.0, 2.0], "late": [0.0, 1.0, 6.0], "tie": [3.0, 3.0, 1.0]}
    rows = [
        {
            "method": method,
            "side": "positive",
            "prompt": prompt,
            "sample": 0,
            "verdict": "refusal",
            "alpha": alpha,
            "score": sign * score,
        }
        for method, sign in (("none", 9.0), ("affine", 1.0), ("addition", -1.0))
        for prompt, some in scores.items()
        for alpha, score in zip((0.0, 1.0, 2.0) if method != "none" else (0.0,), some, strict=False)
    ]
    peaks = Sweep(pd.DataFrame(rows)).peaks().set_index(["method", "prompt"])
    assert len(peaks) == 6  # the model without an edit has none
    affine = peaks.loc["affine"]
    assert affine.peak_alpha.to_dict() == {"early": 1.0, "late": 2.0, "tie": 0.0}  # the smallest of equal ones
    assert affine["last"].to_dict() == {"early": False, "late": True, "tie": False}
    assert peaks.loc["addition"].peak_alpha.to_dict() == {"early": 0.0, "late": 0.0, "tie": 2.0}
    assert Sweep(pd.DataFrame(rows).drop(columns="score")).peaks().empty
