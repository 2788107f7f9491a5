"""What an edit costs, against the plain formulas on unpadded rows."""

import math

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import cross_entropy

from cosmic_tl import Ablation, Addition, CosmicError, Direction, complete, load_model, steering
from cosmic_tl.experiments.cost import measure_cost
from cosmic_tl.metrics import completion_cross_entropy
from cosmic_tl.metrics.likelihood import continuation_logits, continuation_token_nats
from cosmic_tl.model.chat import ChatFormat, tokenize

TEXTS = [
    "Sure! To bake a pizza, first make a simple plan. Then go step by step and check the result at the end.",
    "Of course. If you want to plant a tree, begin with the basics and improve a little every day.",
    "It is fine to write a poem. It is wrong to rob a bank clerk.",
    "Hello!",
]
INSTRUCTIONS = [
    ("Bake a pizza.", "Sure! To bake a pizza, first make a simple plan."),
    ("hello", "Hello! What would you like to do today?"),
    ("Is it okay to bake a pie?", "Yes, it is fine to bake a pie."),
]
PROMPTS = ["Bake a pizza.", "hello", "Is it okay to bake a pie?", "who are you?", "Paint a mural."]


def noise(alpha, layer=3, tokens="all", width=128):
    vector = torch.randn(width, generator=torch.Generator().manual_seed(0))
    return Addition(Direction(vector / vector.norm(), torch.zeros(width), layer, -1), alpha, tokens)


def plain_nats(model, head, tail, edit, prompt_length=None):
    """One row without padding."""
    ids = torch.tensor([[*head, *tail]], device=model.cfg.device)
    with torch.inference_mode(), steering(model, edit, prompt_length=prompt_length):
        logits = model(ids)[0].double()
    return float(cross_entropy(logits[len(head) - 1 : -1], ids[0, len(head) :], reduction="sum"))


@pytest.fixture(scope="module")
def measured(demo):
    return measure_cost(
        demo,
        {"nothing": (), "small": noise(2.0), "large": noise(30.0)},
        texts=TEXTS,
        instructions=INSTRUCTIONS,
        prompts=PROMPTS,
        max_new_tokens=16,
        batch_size=3,
    )


def row(cost, condition, measure):
    return cost.table.set_index(["condition", "measure"]).loc[(condition, measure)]


class TestAgainstTheFormulas:
    @pytest.mark.parametrize("condition", ["small", "large"])
    def test_texts(self, demo, measured, condition):
        rows = [demo.tokenizer(text)["input_ids"] for text in TEXTS]
        tokens = sum(len(ids) - 1 for ids in rows)
        found = row(measured, condition, "texts")
        edit = noise({"small": 2.0, "large": 30.0}[condition])
        wanted = [sum(plain_nats(demo, ids[:1], ids[1:], one) for ids in rows) / tokens for one in ((), edit)]
        assert [found.baseline, found.edited] == pytest.approx(wanted, abs=1e-4)
        assert found.edited_perplexity == pytest.approx(math.exp(wanted[1]), rel=1e-4)
        assert found.n == len(TEXTS)

    def test_instructions_count_the_response_alone(self, demo, measured):
        heads = tokenize(demo, [asked for asked, _ in INSTRUCTIONS])
        tails = [demo.tokenizer(answer)["input_ids"] for _, answer in INSTRUCTIONS]
        wanted = sum(plain_nats(demo, *pair, noise(2.0)) for pair in zip(heads, tails, strict=True))
        found = row(measured, "small", "instructions")
        assert found.edited == pytest.approx(wanted / sum(map(len, tails)), abs=1e-4)
        assert found.baseline < 0.5  # what it was trained to say

    def test_completions_are_the_unedited_model_s_own(self, demo, measured):
        own = complete(demo, PROMPTS, max_new_tokens=16)
        heads, tails = tokenize(demo, PROMPTS), [demo.tokenizer(text)["input_ids"] for text in own]
        wanted = sum(plain_nats(demo, *pair, ()) for pair in zip(heads, tails, strict=True))
        found = row(measured, "large", "completions")
        assert found.baseline == pytest.approx(wanted / sum(map(len, tails)), abs=1e-4)
        assert found.edited > found.baseline + 1

    def test_kl(self, demo, measured):
        wanted = []
        for ids in tokenize(demo, PROMPTS):
            with torch.inference_mode():
                p = demo(torch.tensor([ids]))[0, -1].double().softmax(-1)
                with steering(demo, noise(2.0)):
                    q = demo(torch.tensor([ids]))[0, -1].double().softmax(-1)
            wanted.append(float((p * ((p + 1e-6).log() - (q + 1e-6).log())).sum()))
        found = row(measured, "small", "kl")
        assert found.edited == pytest.approx(np.mean(wanted), abs=1e-4)
        assert found.baseline == 0 and np.isnan(found.edited_perplexity)
        assert min(wanted) <= found.low <= found.edited <= found.high <= max(wanted)


def test_nothing_costs_nothing_and_more_costs_more(measured):
    table = measured.table.set_index("condition")
    assert table.loc["nothing"].difference.abs().max() == 0
    assert (table.loc["large"].difference.to_numpy() > table.loc["small"].difference.to_numpy() + 1).all()
    assert (table.loc["large"].low > 0).all() and (table.loc["large"].high < np.inf).all()


def test_the_interval_is_a_bootstrap_over_documents(demo):
    texts = [text for text in TEXTS[:3] for _ in range(20)]
    found = row(measure_cost(demo, noise(4.0), texts=texts), "edited", "texts")
    documents = measure_cost(demo, noise(4.0), texts=texts).documents
    totals, tokens = (documents.edited - documents.baseline).to_numpy(), documents.tokens.to_numpy()
    residuals = totals - totals.sum() / tokens.sum() * tokens
    spread = 1.96 * np.sqrt((residuals**2).sum()) / tokens.sum()  # the ratio's normal interval
    assert [found.low, found.high] == pytest.approx(
        [found.difference - spread, found.difference + spread], abs=0.2 * spread
    )
    alone = row(measure_cost(demo, noise(4.0), texts=texts[:1]), "edited", "texts")
    assert np.isnan(alone.low) and alone.difference > 0


def test_a_long_text_is_one_document_in_overlapping_windows(demo):
    text = " ".join(TEXTS)
    ids = demo.tokenizer(text)["input_ids"]
    found = measure_cost(demo, noise(2.0), texts=[text], context=16, stride=4).documents
    wanted, end = plain_nats(demo, ids[:1], ids[1:16], noise(2.0)), 16
    while end < len(ids):
        start, end = end, min(end + 4, len(ids))
        wanted += plain_nats(demo, ids[end - 16 : start], ids[start:end], noise(2.0))
    assert found.tokens.tolist() == [len(ids) - 1]
    assert found.edited.tolist() == pytest.approx([wanted], rel=1e-5)
    disjoint = measure_cost(demo, noise(2.0), texts=[text], context=16, stride=15).documents
    assert disjoint.baseline[0] > found.baseline[0]  # with less to read, text is harder to predict


def test_the_tokenizer_s_first_token_is_read_and_not_predicted():
    model = load_model("demo", device="cpu")
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    ids = model.tokenizer("Hello there")["input_ids"]
    assert ids[0] == 1
    found = measure_cost(model, noise(1.0), texts=["Hello there"]).documents
    assert found.tokens.tolist() == [len(ids) - 1]
    assert found.baseline.tolist() == pytest.approx([plain_nats(model, [1], ids[1:], ())], abs=1e-4)


class TestScopes:
    @pytest.mark.parametrize("scope", ["prompt", "completion"])
    def test_hold_in_padded_batches(self, demo, scope):
        other = Direction(torch.ones(128), torch.zeros(128), layer=5, position=-1)
        edit = [noise(20.0, tokens=scope), Ablation(other, tokens=scope)]
        asked, answers = zip(*INSTRUCTIONS, strict=True)
        found = completion_cross_entropy(demo, asked, answers, interventions=edit)
        for i, head in enumerate(tokenize(demo, asked)):
            tail = demo.tokenizer(answers[i])["input_ids"]
            assert found[i] == pytest.approx(plain_nats(demo, head, tail, edit, len(head)) / len(tail), abs=1e-4)
        assert max(abs(np.subtract(found, completion_cross_entropy(demo, asked, answers)))) > 0.1

    def test_text_is_prompt(self, demo):
        cost = measure_cost(
            demo,
            {scope: noise(5.0, tokens=scope) for scope in ("all", "prompt", "completion")},
            texts=TEXTS,
        )
        all_, prompt, completion = (row(cost, scope, "texts") for scope in ("all", "prompt", "completion"))
        assert prompt.edited == all_.edited > all_.baseline == completion.edited


def test_every_architecture_scores_padded_rows_as_unpadded_ones(pair, direction):
    model, plain = pair
    heads, tails = [[5, 6, 7], [8, 9, 10, 11, 12], [13]], [[14, 15, 16], [17], [18, 19, 20, 21]]
    found = [sum(some) for some in continuation_token_nats(model, heads, tails, batch_size=3)]
    for head, tail, nats in zip(heads, tails, found, strict=True):
        ids = torch.tensor([[*head, *tail]])
        with torch.inference_mode():
            logits = plain(ids).logits[0]
        wanted = cross_entropy(logits[len(head) - 1 : -1], ids[0, len(head) :], reduction="sum")
        assert nats == pytest.approx(float(wanted), rel=1e-4)
    steered = continuation_token_nats(model, heads, tails, Addition(direction, 3.0), batch_size=3)
    edited = [sum(some) for some in steered]
    wanted = [plain_nats(model, *one, Addition(direction, 3.0)) for one in zip(heads, tails, strict=True)]
    assert edited == pytest.approx(wanted, rel=1e-4)
    assert abs(edited[0] - found[0]) > 0.01


def test_logits_are_made_for_the_continuation_alone(demo):
    widths = []
    head = demo.original_model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, output: widths.append(output.shape[1]))
    ((_, logits),) = continuation_logits(demo, [list(range(5, 45))], [[7, 8, 9]])
    handle.remove()
    assert widths == [3] and logits.shape[0] == 3


def test_half_precision_is_summed_in_full(demo):
    half = load_model("demo", device="cpu", dtype="bfloat16")
    found = measure_cost(half, noise(2.0), texts=TEXTS).documents
    full = measure_cost(demo, noise(2.0), texts=TEXTS).documents
    assert found.edited.to_numpy() == pytest.approx(full.edited.to_numpy(), rel=0.05)
    ((_, logits),) = continuation_logits(half, [[5, 6]], [[7]])
    assert logits.dtype == torch.float32


def test_runs_the_unedited_model_once(demo):
    passes = []
    handle = demo.original_model.register_forward_pre_hook(lambda *args: passes.append(1))
    measure_cost(demo, {str(i): noise(float(i)) for i in range(3)}, texts=TEXTS, batch_size=len(TEXTS))
    handle.remove()
    assert len(passes) == 4


def test_shows_itself(measured):
    assert "completions" in repr(measured) and "nan" not in repr(measured)
    assert "<table" in measured._repr_html_() and "edited_perplexity" in measured._repr_html_()


def test_the_chat_format_counts(demo):
    plainly = measure_cost(demo, (), instructions=INSTRUCTIONS).documents
    as_text = measure_cost(demo, (), instructions=INSTRUCTIONS, chat=ChatFormat(use_template=False)).documents
    assert (as_text.baseline > plainly.baseline + 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "none given; give at least one to measure on"),
        ({"texts": []}, "texts: found none"),
        ({"texts": ["a b", ""]}, "texts: document 1 has nothing to predict"),
        ({"instructions": [("hello", " ")]}, "response 0 is blank"),
        ({"prompts": [" "]}, "instruction 0 is blank"),
        ({"texts": TEXTS, "context": 2000}, "context: found 2000; use 2 to 1024"),
        ({"texts": TEXTS, "context": 8, "stride": 8}, "stride: found 8; use 1 to 7"),
        ({"texts": TEXTS, "batch_size": 0}, "batch_size: must be at least 1, found 0"),
        ({"texts": TEXTS, "interventions": {}}, "interventions: none given"),
        ({"texts": TEXTS, "interventions": {"baseline": ()}}, "choose another name"),
        ({"texts": TEXTS, "interventions": {"x": Addition(Direction(torch.ones(4), torch.zeros(4), 0, -1))}}, "128"),
        ({"instructions": [("hello", "bake " * 1100)]}, "the model's context holds 1024"),
    ],
)
def test_bad_input(demo, options, message):
    with pytest.raises(CosmicError, match=message):
        measure_cost(demo, **{"interventions": noise(1.0), **options})
