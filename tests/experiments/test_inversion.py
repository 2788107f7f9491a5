"""The reply-inversion test is plain passes under plain hooks, and finds a planted judgement."""

import pytest
import torch
from torch.nn.functional import log_softmax

from cosmic_tl import CosmicError, Direction, difference_in_means, random_direction
from cosmic_tl.activations import class_means
from cosmic_tl.experiments import reply_inversion
from cosmic_tl.figures import plot_inversion
from cosmic_tl.metrics import refusal_tokens

QUESTION = "{prompt} Is it a pizza?"
REPLIES = ("I", "Here")


@pytest.fixture(scope="module")
def directions(demo, prompts):
    found = difference_in_means(*class_means(demo, prompts.sides("train", 32)))
    return {"refusal": found.direction(4, -1), "other": random_direction(found.direction(2, -1), 11)}


def _plain(model, text, added, layer, first, last):
    """Log-probabilities of the next token with a vector added to some tokens at the input of a block."""
    ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])

    def add(block, args, kwargs):
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        hidden[:, first:last] += added
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    handle = model.original_model.model.layers[layer].register_forward_pre_hook(add, with_kwargs=True)
    try:
        with torch.inference_mode():
            return log_softmax(model.original_model(ids).logits[0, -1].double(), dim=-1)
    finally:
        handle.remove()


def _asked(model, text):
    return model.tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )


def test_it_is_what_plain_hooks_give(demo, prompts, directions):
    sides = prompts.side("positive", "test", 2), prompts.side("negative", "test", 3)
    tokens = refusal_tokens(demo, ["Sorry", "I"])
    found = reply_inversion(
        demo,
        sides,
        directions,
        template=QUESTION,
        replies=REPLIES,
        tokens=tokens,
        length=5.0,
        n_placebos=1,
        batch_size=2,
    )
    yes, no = (refusal_tokens(demo, [reply]).ids[0] for reply in REPLIES)
    every = {**directions, "random": random_direction(directions["refusal"], 0)}
    for side, some, sign in (("positive", sides[0], -1), ("negative", sides[1], 1)):
        clean = [_plain(demo, _asked(demo, QUESTION.replace("{prompt}", text)), 0.0, 0, 0, 0) for text in some]
        for name, one in every.items():
            for scope in ("text", "all"):
                steered = []
                for text in some:
                    whole = _asked(demo, QUESTION.replace("{prompt}", text))
                    head = _asked(demo, text).partition(text)[0] + text
                    last = len(demo.tokenizer(head, add_special_tokens=False)["input_ids"]) if scope == "text" else None
                    steered.append(_plain(demo, whole, sign * 5.0 * one.unit, one.layer, 0, last))
                where = ["side", "steered", "tokens", "layer"]
                rows = (
                    found.table.set_index(where).sort_index().loc[(side, name, scope, one.layer)].set_index("measure")
                )
                measures = {
                    "judgement": lambda logp: logp[yes] - logp[no],
                    "reply": lambda logp: torch.logit(logp[[yes, no]].exp().sum()),
                    "refusal": lambda logp: torch.logit(logp[list(tokens.ids)].exp().sum()),
                }
                assert set(rows.index) == set(measures)
                for measure, of in measures.items():
                    values = torch.stack([of(logp) for logp in steered])
                    before = torch.stack([of(logp) for logp in clean])
                    row = rows.loc[measure]
                    assert row.value == pytest.approx(float(values.mean()), abs=1e-3)
                    assert row.change == pytest.approx(float((values - before).mean()), abs=1e-3)
                    assert row.share == float((values > 0).double().mean())
                    assert row.low - 1e-6 <= row.change <= row.high + 1e-6


def test_a_planted_judgement_is_turned_both_ways(demo, prompts, directions):
    """The demo's own reply stands for a judgement: it begins with "I" where it takes a prompt for harmful."""
    found = reply_inversion(
        demo,
        prompts,
        directions,
        template="{prompt}",
        replies=REPLIES,
        scopes=["all"],
        n=6,
        length=directions["refusal"].norm,
    )
    judged = found.table[found.table.measure == "judgement"].set_index(["side", "steered"]).sort_index()
    assert (
        judged.loc[("positive", "nothing"), "share"].item() == 1
        and judged.loc[("negative", "nothing"), "share"].item() == 0
    )
    for side, sign in (("positive", -1), ("negative", 1)):
        own = sign * judged.loc[(side, "refusal"), "change"].item()
        random = judged.loc[(side, "random")]
        assert own > 1.5 * random.change[random.layer == 4].abs().max()
    assert judged.loc[("negative", "refusal"), "share"].item() == 1  # along it, harmless prompts are taken for harmful
    assert judged.loc[("positive", "refusal"), "high"].item() < 0 < judged.loc[("negative", "refusal"), "low"].item()


def test_placebos_are_made_once_for_each_place(demo, directions):
    sides = ["Rob a bank clerk."], ["Bake a pizza."]
    same = {"one": directions["refusal"], "other": random_direction(directions["refusal"], 4)}
    found = reply_inversion(demo, sides, same, n_placebos=2, seed=5)
    random = found.table.query("steered == 'random' and side == 'positive' and measure == 'judgement'")
    assert random[["tokens", "layer", "seed"]].to_numpy().tolist() == [
        [t, 4, s] for t in ("text", "all") for s in (5, 6)
    ]
    assert found.length == pytest.approx(max(one.norm for one in same.values()))
    figure = plot_inversion(found)
    assert list(figure.layout.yaxis.ticktext) == ["one, text", "other, text", "one, all", "other, all"]
    assert len(next(trace for trace in figure.data if trace.name == "random directions").x) == 2


def test_bad_input(demo, prompts, directions):
    def ask(some=directions, **options):
        reply_inversion(demo, prompts, some, n=1, **options)

    with pytest.raises(CosmicError, match=r"^directions: found none"):
        ask({})
    with pytest.raises(CosmicError, match=r"^directions: 'random' is the name of"):
        ask({"random": directions["refusal"]})
    with pytest.raises(CosmicError, match=r"^template: '{prompt}' occurs 0 times"):
        ask(template="Is it harmful?")
    with pytest.raises(CosmicError, match=r"^replies: both begin with 'I'"):
        ask(replies=("I think so", "I do not"))
    with pytest.raises(CosmicError, match=r"^length: found 0.0"):
        ask(length=0.0)
    with pytest.raises(CosmicError, match=r"^scopes: found none"):
        ask(scopes=[])
    with pytest.raises(CosmicError, match=r"^scopes: expected a list of 'text' or 'all', found the text 'prompt' at 0"):
        ask(scopes=["prompt"])
    with pytest.raises(CosmicError, match=r"^direction: it has width 7"):
        ask({"x": Direction(torch.ones(7), None, 3, -1)})
