"""A conversation's projections are what plain hooks see while it is generated, and 0 and 1 are the two classes."""

from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import DynamicCache, PreTrainedTokenizerFast

from cosmic_tl import (
    Ablation,
    Addition,
    AffineEdit,
    ChatFormat,
    CosmicError,
    CosmicOptions,
    Direction,
    Sampling,
    complete,
    difference_in_means,
    load_model,
    random_direction,
    select_cosmic,
    steering,
)
from cosmic_tl._util.coloured import ABOVE, BELOW, STRONGEST
from cosmic_tl.activations import class_means
from cosmic_tl.experiments import Conversation, follow_conversation
from cosmic_tl.experiments.conversation import token_texts
from cosmic_tl.model.chat import tokenize
from tests.tiny import save

PROMPT = "Can you help me kidnap a tourist?"


@pytest.fixture(scope="module")
def selection(demo, prompts):
    return select_cosmic(demo, prompts, CosmicOptions(n_train=32, n_val=16, n_resamples=0))


@pytest.fixture(scope="module")
def found(demo, selection):
    return follow_conversation(demo, PROMPT, selection)


def _grid(found, condition):
    """Ids, and projections by token and layer."""
    some = found.table[found.table.condition == condition]
    ids = some.drop_duplicates("index").id.tolist()
    return ids, torch.tensor(some.pivot(index="index", columns="layer", values="projection").to_numpy())


def _generated(model, row, direction, edited, alpha, n):
    """Tokens and their projections by a plain loop with a cache: `edited` says which indices get `α r` at the layer's input."""
    start, seen, kept = 0, [], []

    def edit(x, hook):
        index = torch.arange(start, start + x.shape[1])
        return torch.where(edited(index)[None, :, None], x + alpha * direction.vector, x)

    def keep(x, hook):
        kept.append(((x[0] - direction.reference) @ direction.vector).double() / direction.vector.double().norm() ** 2)

    hooks = [(f"blocks.{direction.layer}.hook_resid_pre", edit)]
    hooks += [(f"blocks.{layer}.hook_resid_pre", keep) for layer in range(int(model.cfg.n_layers))]
    ids, fed, cache = list(row), row, DynamicCache()
    with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
        for _ in range(n + 1):  # and once more, which reads the last token
            kept.clear()
            logits = model.original_model(torch.tensor([fed]), past_key_values=cache, use_cache=True).logits
            seen.append(torch.stack(kept, dim=1))
            start += len(fed)
            if ids[-1] == model.tokenizer.eos_token_id and len(ids) > len(row):
                break
            fed = [int(logits[0, -1].argmax())]
            ids += fed
    return ids[: len(row) + n], torch.cat(seen)[: len(row) + n]


MASK = torch.zeros(1, 20, dtype=torch.bool)
MASK[:, [3, 5, 17]] = True
SCOPES = {
    "all": ("all", lambda index, n: index >= 0),
    "prompt": ("prompt", lambda index, n: index < n),
    "completion": ("completion", lambda index, n: index >= n),
    "mask": (MASK, lambda index, n: sum(index == i for i in (3, 5, 17)).bool()),
}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("model", ["demo", "gemma3_text"])
def test_it_is_what_plain_hooks_see_while_it_is_generated(demo, model, scope, tmp_path):
    model = demo if model == "demo" else load_model(save(tmp_path, model), device="cpu")
    width = int(model.cfg.d_model)
    vector, reference = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    direction = Direction(4 * vector, reference, layer=1, position=-1)
    tokens, edited = SCOPES[scope]
    (row,) = tokenize(model, [PROMPT])
    edits = {"edit": Addition(direction, 0.5, tokens)}
    found = follow_conversation(model, PROMPT, direction, edits, max_new_tokens=8)
    for condition, alpha in (("baseline", 0.0), ("edit", 0.5)):
        ids, expected = _generated(model, row, direction, lambda index: edited(index, len(row)), alpha, 8)
        assert _grid(found, condition)[0] == ids
        torch.testing.assert_close(_grid(found, condition)[1], expected, atol=1e-4, rtol=1e-4)
    assert (_grid(found, "edit")[1][: len(row), 2] != _grid(found, "baseline")[1][: len(row), 2]).any() == (
        scope != "completion"
    )


def test_the_classes_are_0_and_1(demo, prompts):
    sides = prompts.sides("train", 6)
    layer, position = 5, -1
    direction = difference_in_means(*class_means(demo, sides)).direction(layer, position, demo)
    for side, value in zip(sides, (1.0, 0.0), strict=True):
        means = []
        for prompt in side:
            found = follow_conversation(demo, prompt, direction, layers=[layer], max_new_tokens=1)
            means.append(found.table[found.table.part != "completion"].projection.iloc[position])
        assert sum(means) / len(means) == pytest.approx(value, abs=1e-5)


def test_edits_show_where_they_act(demo, found, selection):
    layer = selection.direction.layer
    assert tuple(found.completions) == ("baseline", "removal", "induction") and found.layer == layer
    assert "sorry" in found.completions["baseline"] and "sorry" not in found.completions["removal"]
    for condition, value in (("removal", 0.0), ("induction", 1.0)):  # affine: every token is set
        assert torch.allclose(_grid(found, condition)[1][:, layer], torch.tensor(value).double(), atol=1e-5)
        assert torch.equal(_grid(found, condition)[1][:14, :layer], _grid(found, "baseline")[1][:14, :layer])
    direction = selection.direction
    edits = {"ablation": Ablation(direction), "random": Ablation(random_direction(direction, 1))}
    ablated = follow_conversation(demo, PROMPT, direction, edits, max_new_tokens=4)
    origin = -float(direction.reference.double() @ direction.vector.double()) / direction.norm**2
    assert torch.allclose(_grid(ablated, "ablation")[1], torch.tensor(origin).double(), atol=1e-5)
    moved = (_grid(ablated, "random")[1] - _grid(ablated, "baseline")[1])[:14].abs().max()
    assert moved < 0.2 * (_grid(ablated, "ablation")[1] - _grid(ablated, "baseline")[1])[:14].abs().max()


def test_without_a_reference_0_is_the_streams_own(demo, found, selection):
    bare = follow_conversation(
        demo, PROMPT, replace(selection.direction, reference=None), layers=[6, 2], max_new_tokens=4
    )
    assert tuple(bare.completions) == ("baseline",) and bare.layers == (2, 6)
    known = found.table[
        (found.table.condition == "baseline") & found.table.layer.isin([2, 6]) & (found.table["index"] < 14)
    ]
    direction = selection.direction
    origin = float(direction.reference.double() @ direction.vector.double()) / direction.norm**2
    assert bare.table.projection[: len(known)].tolist() == pytest.approx((known.projection + origin).tolist(), abs=1e-6)
    assert (found.scale[0], bare.scale[0]) == (0.5, 0.0)


def test_tokens_have_their_text_and_part(demo, found):
    tokens = found.table[found.table.condition == "baseline"].drop_duplicates("index")
    texts = tokens.groupby("part", sort=False).token.sum()
    assert texts["template"] + texts["prompt"] == "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n" + PROMPT
    assert texts["completion"] == found.completions["baseline"] + "<|im_end|>"
    assert texts["prompt"] == PROMPT and tokens.part.tolist()[:3] == ["template"] * 3
    chat = ChatFormat(system="Be brief.", prefix="Well")
    other = follow_conversation(demo, PROMPT, found.direction, layers=[6], chat=chat, max_new_tokens=2).table
    assert other[other.part == "prompt"].token.sum() == PROMPT
    assert "Be brief." in other[other.part == "template"].token.sum()
    plain = ChatFormat(use_template=False)
    other = follow_conversation(demo, PROMPT, found.direction, layers=[6], chat=plain, max_new_tokens=1).table
    assert other.part.tolist() == ["prompt"] * (len(other) - 1) + ["completion"]


def test_spaces_are_kept_that_a_tokenizer_leaves_out_of_a_single_token():
    words = {"▁I": 0, "▁am": 1, "!": 2, "<unk>": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert fast.decode([1]) == "am"
    assert token_texts(fast, [0, 1, 2, 1]) == ["I", " am", "!", " am"]


def test_completions_are_those_of_complete(demo, found, selection):
    edits = {"baseline": (), "removal": selection.removal(), "induction": selection.induction()}
    assert found.completions == {name: complete(demo, [PROMPT], edit)[0] for name, edit in edits.items()}
    options = {"temperature": 1.0, "sampling": Sampling(top_k=50), "max_new_tokens": 6}
    drawn = [follow_conversation(demo, PROMPT, selection.direction, layers=[6], seed=s, **options) for s in range(3)]
    for seed, one in enumerate(drawn):
        assert one.completions["baseline"] == complete(demo, [PROMPT], seed=seed, **options)[0]
        assert one.generation["seed"] == seed and one.generation["top_k"] == 50
    assert len({one.completions["baseline"] for one in drawn}) > 1


def test_an_edit_around_is_seen_or_refused(demo, found, selection):
    with steering(demo, selection.removal()):
        inside = follow_conversation(demo, PROMPT, selection.direction)
    assert inside.completions["baseline"] == found.completions["removal"]
    torch.testing.assert_close(_grid(inside, "baseline")[1], _grid(found, "removal")[1])
    with (
        steering(demo, replace(selection.removal(), tokens="completion")),
        pytest.raises(CosmicError, match=r"^interventions: an edit of some tokens alone acts on the model already"),
    ):
        follow_conversation(demo, PROMPT, selection.direction)


EVIL = "<img src=x onerror=alert(1)> \" ' & \u202e\x1b\n"


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def test_texts_stay_text():
    rows = {
        "part": ["template", "prompt", "completion"],
        "token": EVIL,
        "projection": [-9.0, 0.5, 9.0],
        "index": range(3),
    }
    table = pd.DataFrame(rows).assign(condition="<i>", layer=3, id=0)
    shown = Conversation(table, EVIL, {"<i>": EVIL}, Direction(torch.ones(2), None, 3, -1), {})._repr_html_()
    page = Tags(shown)
    assert page.tags <= {"p", "div", "span", "strong", "small", "table", "thead", "tbody", "tr", "th", "td"}
    assert page.attributes <= {"style", "title", "dir", "class", "border"}
    assert page.text.count("<img src=x onerror=alert(1)> \" ' & ") == 3 and page.text.count("<i>") == 2
    assert not any(c in shown for c in ("\u202e", "\x1b"))
    assert f"rgba(0,114,178,{STRONGEST:.2f})" in shown and f"rgba(213,94,0,{STRONGEST:.2f})" in shown


def test_text_can_be_read_on_every_colour():
    def luminance(colour):
        parts = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for paper, ink in (((255,) * 3, (0x1A,) * 3), ((0x14, 0x17, 0x1C), (0xE8,) * 3)):
        for colour in (BELOW, ABOVE):
            behind = [STRONGEST * c + (1 - STRONGEST) * p for c, p in zip(colour, paper, strict=True)]
            high, low = sorted((luminance(behind), luminance(ink)), reverse=True)
            assert (high + 0.05) / (low + 0.05) > 4.5


def test_bad_input(demo, found, selection):
    with pytest.raises(CosmicError, match=r"^layers: found \(8,\); give some of 0 to 7"):
        follow_conversation(demo, PROMPT, selection, layers=[8])
    with pytest.raises(CosmicError, match=r"^layers: found \(\); give some"):
        follow_conversation(demo, PROMPT, selection, layers=[])
    with pytest.raises(CosmicError, match=r"^interventions: 'baseline' is the unedited model"):
        follow_conversation(demo, PROMPT, selection, {"baseline": AffineEdit(selection.direction)})
    with pytest.raises(CosmicError, match=r"^prompts: instruction 0 is blank"):
        follow_conversation(demo, " ", selection)
    with pytest.raises(CosmicError, match=r"^max_new_tokens: must be at least 1"):
        follow_conversation(demo, PROMPT, selection, max_new_tokens=0)
    with pytest.raises(CosmicError, match=r"^tokens: the mask has 2 rows and the batch 1"):
        follow_conversation(demo, PROMPT, selection, Addition(selection.direction, tokens=MASK.repeat(2, 1)))
    with pytest.raises(CosmicError, match=r"^layer: found 9, and the layers read are 0, 1"):
        found.html(9)
    with pytest.raises(CosmicError, match=r"^direction: it has width 7"):
        follow_conversation(demo, PROMPT, Direction(torch.ones(7), None, 3, -1))
