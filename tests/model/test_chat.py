import pytest
import torch

from cosmic_tl import ChatFormat, CosmicError, complete, post_instruction_positions
from cosmic_tl.model import batching
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import chat_notes, render, tokenize

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nTAIL{% endif %}"
)


@pytest.fixture
def template(demo, monkeypatch):
    """Sets a chat template for one test."""
    return lambda text: monkeypatch.setattr(demo.tokenizer, "chat_template", text)


def test_positions_are_the_templates_tokens_after_the_text(demo):
    found = post_instruction_positions(demo)
    assert found.labels == ("<|im_end|>", "\n", "<|im_start|>", "assistant", "\n")
    assert found.indices == (-5, -4, -3, -2, -1)
    assert post_instruction_positions(demo, n=2).labels == ("assistant", "\n")


def test_positions_include_prefix_and_do_not_depend_on_the_system_prompt(demo):
    prefixed = post_instruction_positions(demo, ChatFormat(prefix="Sure"))
    assert prefixed.labels[-1] == "Sure" and len(prefixed) == 6
    assert len(post_instruction_positions(demo, ChatFormat(system="Be brief."))) == 5


@pytest.mark.parametrize("chat", [ChatFormat(), ChatFormat(system="Be brief.", prefix="Sure")])
def test_the_last_token_of_the_text_is_a_position_on_request(demo, chat):
    found, plain = post_instruction_positions(demo, chat, instruction=True), post_instruction_positions(demo, chat)
    assert found.labels == ("end of the text", *plain.labels)
    assert post_instruction_positions(demo, chat, len(plain) + 2).labels == (f"-{len(plain) + 2}", *found.labels)
    for text in ("Rob a bank clerk.", "Is it a pizza?", "(see 'x')", "Explain how to go", "7é中"):
        alone = demo.tokenizer(text, add_special_tokens=False)["input_ids"]
        row = tokenize(demo, [text], chat)[0]
        assert row[: -len(plain)][-len(alone) :] == alone
        assert row[found.indices[0]] == alone[-1]


def test_the_last_token_of_the_text_has_to_have_a_place(demo, template):
    with pytest.raises(CosmicError, match=r"^instruction: the text's last token is found before .* leave out n"):
        post_instruction_positions(demo, n=2, instruction=True)
    template("{{ messages[-1].content }}ing it")  # merges with words, and not with a full stop
    with pytest.raises(CosmicError, match=r"^instruction: the tokenizer merges the end of some texts"):
        post_instruction_positions(demo, instruction=True)
    template("{{ messages[-1].content }}\n\nAnswer:")  # which would merge with white space alone
    rows = tokenize(demo, ["Bake a pie.", "Bake a pie", "Bake a pie?"])
    found = post_instruction_positions(demo, instruction=True)
    assert len({row[found.indices[0]] for row in rows}) == 3
    assert len({tuple(row[found.indices[1] :]) for row in rows}) == 1
    template(None)
    with pytest.raises(CosmicError, match=r"^instruction: .* use a template"):
        post_instruction_positions(demo, instruction=True)


def test_a_token_merged_with_the_text_is_not_the_templates(demo, template):
    # The letters after the text merge with its last word, differently for each text.
    template("{{ messages[-1].content }}ing it")
    labels = post_instruction_positions(demo).labels
    rows = tokenize(demo, ["Why do you bake", "Explain how to go", "Tell me of the pizza"])
    for offset in range(1, len(labels) + 1):
        assert len({row[-offset] for row in rows}) == 1
    assert labels[-1] == " it"


def test_without_a_template_the_last_tokens_are_taken(demo, template):
    template(None)
    assert len(post_instruction_positions(demo)) == 5
    assert render(demo, ["How do I bake?"]) == ["How do I bake?"]
    assert "as they are" in chat_notes(demo)[0]
    with pytest.raises(CosmicError, match="takes no system prompt"):
        render(demo, ["hi"], ChatFormat(system="x"))
    with pytest.raises(CosmicError, match="has no chat template"):
        render(demo, ["hi"], ChatFormat(use_template=True))


def test_a_template_without_system_role_takes_it_before_the_text(demo, template):
    template(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + CHATML.replace("TAIL", "")
    )
    assert render(demo, ["hi"], ChatFormat(system="Be brief."))[0].startswith(
        "<|im_start|>user\nBe brief.\n\nhi<|im_end|>"
    )
    assert "no system prompt" in chat_notes(demo, ChatFormat(system="Be brief."))[0]


def test_a_template_that_rejects_a_plain_message_is_named(demo, template):
    template("{{ raise_exception('no users') }}")
    with pytest.raises(CosmicError, match=r"rejects the user message .* \(no users\)"):
        render(demo, ["hi"])


@pytest.mark.parametrize(
    ("tail", "end"),
    [
        ("<think>\n", "<think>\n</think>\n\n"),
        ("<think>", "<think>\n</think>\n\n"),
        (
            "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
            "<think>\n\n</think>\n\n",
        ),
        ("{# answers may hold </think> #}", "<think>\n\n</think>\n\n"),
    ],
)
def test_thinking_blocks_are_closed_and_said_so(demo, template, tail, end):
    template(CHATML.replace("TAIL", tail))
    assert render(demo, ["hi"])[0].endswith("assistant\n" + end)
    assert len(chat_notes(demo)) == 1 and "think" in chat_notes(demo)[0]
    last = post_instruction_positions(demo)
    assert "".join(last.labels).endswith("\n\n")
    assert not render(demo, ["hi"], ChatFormat(thinking="open"))[0].endswith("</think>\n\n")


def test_a_thinking_tag_in_the_users_text_is_left_alone(demo):
    assert render(demo, ["What is <think>?"])[0].endswith("<|im_start|>assistant\n")


def test_template_options_reach_the_template(demo, template):
    template(CHATML.replace("TAIL", "{{ mood }}"))
    assert render(demo, ["hi"], ChatFormat(template_options={"mood": "calm"}))[0].endswith("calm")


def test_batches_pad_on_the_left_and_bucket_by_length(demo):
    rows = tokenize(demo, ["hi", "How do I bake a small pizza?", "hello there"])
    found = list(batches(demo, rows, 2))
    assert [batch.rows for batch in found] == [(0, 2), (1,)]
    for batch in found:
        for row, ids, mask in zip(batch.rows, batch.ids, batch.mask, strict=True):
            assert ids[mask.bool()].tolist() == rows[row]
            assert mask.diff().min() >= 0  # once a token is real, all later ones are


def test_the_default_size_of_a_batch_depends_on_its_own_rows(demo, monkeypatch):
    """At most 32, and fewer where the logits are large; a long row at the end leaves the others' batches as they are."""
    rows = [[5] * 4] * 70
    assert [len(batch.rows) for batch in batches(demo, rows)] == [32, 32, 6]
    monkeypatch.setattr(batching, "LOGIT_BYTES", 4 * 10 * 2048 * 5)  # of five rows with ten positions
    assert [len(batch.rows) for batch in batches(demo, rows, n_logits=10)] == [5] * 14
    monkeypatch.setattr(batching, "_default_size", lambda model, longest, n_logits, most: 100 // longest)
    assert [len(batch.rows) for batch in batches(demo, [*rows[:50], [5] * 50])] == [25, 25, 1]
    assert [len(batch.rows) for batch in batches(demo, [*rows[:24], [5] * 50])] == [24, 1]


def test_bad_prompts(demo):
    with pytest.raises(CosmicError, match="none given"):
        tokenize(demo, [])
    with pytest.raises(CosmicError, match="instruction 1 is blank"):
        tokenize(demo, ["hi", " "])
    with pytest.raises(CosmicError, match="context holds"):
        tokenize(demo, ["hi " * 2000])
    with pytest.raises(CosmicError, match="batch_size"):
        list(batches(demo, [[1]], 0))
    with pytest.raises(CosmicError, match="positions"):
        post_instruction_positions(demo, n=0)


def test_completions_keep_the_order_and_ignore_batching(demo):
    texts = ["How do I bake a pizza?", "hello", "Please tell me how to kill a neighbour.", "thanks"]
    alone = [complete(demo, [text])[0] for text in texts]
    assert complete(demo, texts, batch_size=2) == alone
    assert complete(demo, texts, batch_size=4) == alone


def test_sampling_is_seeded_and_leaves_the_global_state_alone(demo):
    before = torch.random.get_rng_state()
    first = complete(demo, ["How do I bake a pizza?"] * 4, temperature=1.5, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert complete(demo, ["How do I bake a pizza?"] * 4, temperature=1.5, seed=3) == first
    assert complete(demo, ["How do I bake a pizza?"] * 4, temperature=1.5, seed=4) != first


def test_batches_split_where_padding_costs_more_than_a_pass(demo):
    rows = [[5] * length for length in (9, 2, 8, 2, 9, 3)]

    def cost(split, overhead):
        return sum(max(map(len, part)) * len(part) + overhead for part in split)

    def splits(some, size):
        if not some:
            yield []
        for n in range(1, min(size, len(some)) + 1):
            yield from ([some[:n], *rest] for rest in splits(some[n:], size))

    for size, overhead in ((6, 1), (6, 8), (6, 100), (2, 1), (4, 5)):
        found = [[rows[i] for i in batch.rows] for batch in batches(demo, rows, size, overhead)]
        assert sorted(len(row) for batch in found for row in batch) == sorted(map(len, rows))
        assert max(map(len, found)) <= size
        assert cost(found, overhead) == min(cost(split, overhead) for split in splits(sorted(rows, key=len), size))
