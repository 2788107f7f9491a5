"""The strongest activations are those of plain passes over all texts, of which few are held at a time."""

from html import escape

import pytest
import torch

from cosmic_tl import ChatFormat, CosmicError, Direction, project
from cosmic_tl.metrics import strongest, strongest_activations
from cosmic_tl.model.chat import tokenize, tokenize_conversations

DIRECTION = Direction(torch.randn(128, generator=torch.Generator().manual_seed(0)), None, 3, -1)
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello! <b>What</b> now?"}]


def everything(demo, rows, measure, start):
    """Each token's activation from a pass of its own row, as (value, text, index)."""
    found = []
    for number, row in enumerate(rows):
        kept = []
        hook = ("blocks.3.hook_resid_pre", lambda x, hook, kept=kept: kept.append(x[0].double()))
        with torch.inference_mode(), demo.hooks(fwd_hooks=[hook]):
            demo(torch.tensor([row]))
        stream, unit = kept[0], DIRECTION.unit.double()
        values = stream @ unit / (1 if measure == "projection" else stream.norm(dim=1))
        found += [(float(value), number, i) for i, value in enumerate(values) if i >= start % len(row)]
    return found


@pytest.mark.parametrize("measure", ["projection", "cosine"])
@pytest.mark.parametrize(("positions", "start"), [("all", 3), ("post-instruction", -5)])  # after <|im_start|>user\n
def test_they_are_those_of_plain_passes(demo, prompts, measure, positions, start):
    texts = [*prompts.side("positive", "val", 6), *prompts.side("negative", "val", 5)]
    found = strongest_activations(demo, texts, DIRECTION, n=4, positions=positions, measure=measure, batch_size=4)
    assert found.n_texts == 11
    rows = tokenize(demo, texts)
    plain = everything(demo, rows, measure, start)
    assert found.n_tokens == len(plain)
    for end, reverse in (("largest", True), ("smallest", False)):
        seen, expected = set(), []
        for one in sorted(plain, reverse=reverse):
            if one[1] not in seen:
                seen.add(one[1])
                expected.append(one)
        some = found.table[found.table.end == end]
        assert some["rank"].tolist() == [1, 2, 3, 4]
        assert some.value.tolist() == pytest.approx([one[0] for one in expected[:4]], abs=1e-4)
        assert some.text.nunique() == 4
        known = {one[1:]: one[0] for one in plain}  # texts that begin alike have equal values
        places = zip(some.text, some["index"], strict=True)
        assert some.value.tolist() == pytest.approx([known[place] for place in places], abs=1e-4)
        for one in some.itertuples():
            whole = demo.tokenizer.decode(rows[one.text])
            assert f"{one.before}{one.token}{one.after}" in whole and one.token == demo.tokenizer.decode(
                rows[one.text][one.index]
            )


def test_they_agree_with_the_projection_of_one_prompt(demo):
    found = strongest_activations(demo, ["Rob a clerk."], DIRECTION, n=1).table
    values = project(demo, "Rob a clerk.", DIRECTION).values[2]  # what leaves block 2 enters block 3
    assert found.value.tolist() == pytest.approx([float(values[3:].max()), float(values[3:].min())], abs=1e-5)


def test_few_texts_are_held_at_a_time(demo, monkeypatch):
    texts = [f"Rob a clerk and {'then another ' * i}go." for i in range(9)] * 2
    expected = strongest_activations(demo, texts, DIRECTION, n=3, batch_size=1)
    monkeypatch.setattr(strongest, "CHUNK", 4)
    given, passes = [], []
    forward = strongest.forward

    def watched(*args, **kwargs):
        passes.append(len(given))
        return forward(*args, **kwargs)

    def giving():
        for text in texts:
            given.append(text)
            yield text

    monkeypatch.setattr(strongest, "forward", watched)
    found = strongest_activations(demo, giving(), DIRECTION, n=3, batch_size=1)
    assert passes == [4] * 4 + [8] * 4 + [12] * 4 + [16] * 4 + [18] * 2
    assert found.table.equals(expected.table)
    first, second, _ = found.table[found.table.end == "smallest"].text
    assert second == first + 9  # the same text again: of equal ones, the first comes first


def test_conversations_go_through_the_chat_template(demo):
    def plain(messages, asked):
        return demo.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asked)

    asked, told = TALK[:1], [{"role": "system", "content": "Be brief."}, *TALK, TALK[0]]
    rows = tokenize_conversations(demo, [TALK, asked, told])
    texts = [plain(TALK, False), plain(asked, True), plain(told, True)]
    assert rows == demo.tokenizer(texts, add_special_tokens=False)["input_ids"]
    own = ChatFormat(system="Be kind.", prefix="Sure")
    rows = tokenize_conversations(demo, [TALK, asked, told], own)
    assert rows[1] == tokenize(demo, ["hi"], own)[0]
    decoded = [demo.tokenizer.decode(row) for row in rows]
    assert ["Be kind." in text for text in decoded] == [True, True, False]
    assert [text.endswith("Sure") for text in decoded] == [False, True, True]
    mixed = strongest_activations(demo, ["Rob a clerk.", TALK], DIRECTION, n=2)
    assert sorted(mixed.table.text) == [0, 0, 1, 1]


def test_a_planted_text_comes_first(demo, prompts):
    texts = prompts.side("negative", "val", 12)
    kept = []
    with (
        torch.inference_mode(),
        demo.hooks(fwd_hooks=[("blocks.3.hook_resid_pre", lambda x, hook: kept.append(x[0, -7]))]),
    ):
        demo(torch.tensor(tokenize(demo, [texts[8]])))
    direction = Direction(kept[0], None, 3, -1)
    first = strongest_activations(demo, texts, direction, n=1, measure="cosine").table.iloc[0]
    assert first.text == 8 and first["index"] == len(tokenize(demo, [texts[8]])[0]) - 7
    assert first.value == pytest.approx(1, abs=1e-5)


def test_text_is_escaped_where_html_is_made(demo):
    found = strongest_activations(demo, ["<script>alert(1)</script> & more", TALK], DIRECTION, n=2)
    html = found._repr_html_()
    assert "<script>" not in html and "<b>" not in html and html.count("<mark>") == 4
    for one in found.table.itertuples():  # nothing is cut off
        whole = [escape(text.replace("\n", "\\n")) for text in (one.before, one.token, one.after)]
        assert "{}<mark>{}</mark>{}".format(*whole) in html
    labels = [label for axis in ("yaxis", "yaxis2") for label in found.plot().layout[axis].ticktext]
    assert all("<script>" not in label and label.count("<b>") == 1 for label in labels)


def test_bad_input(demo):
    for texts, options, message in (
        ([], {}, r"^texts: found none"),
        ("hi", {}, r"^texts: must be a list of texts"),
        (["hi", " "], {}, r"^text 1: prompts: instruction 0 is blank"),
        (["hi"], {"n": 0}, r"^n: must be at least 1"),
        (["hi"], {"context": 0}, r"^context: must be at least 1"),
        (["hi"], {"positions": "last"}, r"^positions: unknown 'last'; use all or post-instruction"),
        (["hi"], {"measure": "dot"}, r"^measure: unknown 'dot'"),
        ([TALK], {"positions": "post-instruction"}, r"^text 0: it ends with the assistant's message"),
        ([[]], {}, r"^text 0: conversation: expected messages"),
        ([[{"role": "user"}]], {}, r"^text 0: conversation: expected messages"),
        ([TALK], {"chat": ChatFormat(use_template=False)}, r"^text 0: conversation: the chat template is not used"),
    ):
        with pytest.raises(CosmicError, match=message):
            strongest_activations(demo, texts, DIRECTION, **options)
    with pytest.raises(CosmicError, match=r"^direction: it has width 4"):
        strongest_activations(demo, ["hi"], Direction(torch.ones(4), None, 3, -1))
