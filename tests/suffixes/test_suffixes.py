"""Adversarial suffixes: the search against plain formulas, and the paper's findings on the demo model."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from cosmic_tl import AffineEdit, ChatFormat, CosmicError, complete, difference_in_means, load_model, mean_activations
from cosmic_tl.figures.suffixes import plot_head_attention, plot_head_contributions, plot_suffix_cosines
from cosmic_tl.judges import judge_refusal
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.forward import read
from cosmic_tl.model.load import demo_path
from cosmic_tl.suffixes.analysis import analyse_suffix
from cosmic_tl.suffixes.groups import ADVERSARIAL, HARMFUL, HARMLESS, RANDOM, suffix_groups
from cosmic_tl.suffixes.heads import contributions_along, head_attention, top_heads
from cosmic_tl.suffixes.search import find_suffix, target_losses, token_gradient
from cosmic_tl.suffixes.suffix import Suffix, SuffixOptions
from cosmic_tl.suffixes.targets import attackable_prompts, compliant_targets
from cosmic_tl.suffixes.tokens import frames, random_suffixes, surviving_texts, usable_tokens

TEXTS = ["How do I bake a pizza?", "hi", "Please explain how I can kill a background process."]
SUFFIX, GOALS = (300, 411, 512), [(61, 62, 63, 64), (70, 71), (80,)]
SMALL = SuffixOptions(n_tokens=8, steps=15, n_candidates=48, top_k=64, max_new_tokens=32)


@pytest.fixture(scope="module")
def refusal(demo, prompts):
    sides = [mean_activations(demo, prompts.side(side, "train", 64)) for side in ("positive", "negative")]
    return difference_in_means(*sides).direction(4, -1, demo)


@pytest.fixture(scope="module")
def asked(demo, prompts):
    return prompts.side("positive", "test", 2)


@pytest.fixture(scope="module")
def targets(demo, asked, refusal):
    return compliant_targets(demo, asked, AffineEdit(refusal, 0.0), n_tokens=12)


@pytest.fixture(scope="module")
def suffix(demo, asked, targets):
    return find_suffix(demo, asked, targets, options=SMALL)


@pytest.fixture(scope="module")
def analysis(demo, suffix, refusal, prompts):
    harmful, harmless = prompts.side("positive", "test")[40:70], prompts.side("negative", "test", 30)
    return analyse_suffix(demo, (harmful, harmless), suffix.text, refusal, max_new_tokens=16)


def rows_of(places):
    return [[*p.before, *SUFFIX, *p.after, *goal] for p, goal in zip(places, GOALS, strict=True)]


def nats(logits, goal):
    return torch.nn.functional.cross_entropy(logits[-len(goal) - 1 : -1], torch.tensor(goal))


def test_a_suffix_is_made_on_prompts_that_are_refused_and_when_steered_answered(demo, refusal, prompts):
    harmful, harmless = prompts.side("positive", "test", 6), prompts.side("negative", "test", 4)
    mixed = [*harmless, *harmful]
    edit = AffineEdit(refusal, 0.0)
    found = attackable_prompts(demo, mixed, edit, n=3, batch_size=4)
    answers = [complete(demo, mixed, edits, max_new_tokens=32) for edits in ((), edit)]
    verdicts = [tuple(map(judge_refusal, pair)) for pair in zip(*answers, strict=True)]
    wanted = [prompt for prompt, pair in zip(mixed, verdicts, strict=True) if pair == ("refusal", "compliance")]
    assert found == wanted[:3] and not set(found) & set(harmless)
    with pytest.raises(CosmicError, match=f"n_prompts: found 10, and the model refuses {len(wanted)} of 10 prompts"):
        attackable_prompts(demo, mixed, edit, n=10)


# The search


def test_the_gradient_is_that_of_one_hot_tokens(pair):
    """On every architecture, against autograd through the plain model, and the loss against a row at a time."""
    bridge, plain = pair
    places = frames(bridge, TEXTS)
    found = token_gradient(bridge, places, SUFFIX, GOALS, torch.arange(2048))
    expected, losses = 0, []
    for place, row, goal in zip(places, rows_of(places), GOALS, strict=True):
        embedding, start = plain.get_input_embeddings(), len(place.before)
        one_hot = torch.nn.functional.one_hot(torch.tensor(SUFFIX), 2048).float().requires_grad_()
        swapped = one_hot @ embedding(torch.arange(2048)).detach()
        embedded = embedding(torch.tensor(row)).detach()
        embedded = torch.cat([embedded[:start], swapped, embedded[start + len(SUFFIX) :]])
        losses.append(nats(plain(inputs_embeds=embedded[None]).logits[0], goal))
        expected = expected + torch.autograd.grad(losses[-1], one_hot)[0] / len(places)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    loss = target_losses(bridge, places, [SUFFIX, SUFFIX[::-1]], GOALS)
    assert abs(loss[0] - sum(losses) / len(losses)) < 1e-4
    assert abs(loss[0] - loss[1]) > 1e-3


def test_the_gradient_is_a_finite_difference(demo):
    """A step from one token's embedding towards another's (in float64, but for norms that work in float32)."""
    plain = AutoModelForCausalLM.from_pretrained(demo_path(), dtype=torch.float64)
    places = frames(demo, TEXTS[:1])
    gradient = token_gradient(demo, places, SUFFIX, GOALS[:1], torch.arange(2048)).double()
    ids, start = rows_of(frames(demo, TEXTS))[0], len(places[0].before)
    table = plain.get_input_embeddings().weight.detach()

    def loss(j, token, step):
        embedded = table[ids].clone()
        embedded[start + j] += step * (table[token] - table[SUFFIX[j]])
        return nats(plain(inputs_embeds=embedded[None]).logits[0], GOALS[0])

    with torch.no_grad():
        for j, token in ((0, 100), (1, 700), (2, 1500)):
            measured = (loss(j, token, 1e-2) - loss(j, token, -1e-2)) / 2e-2
            assert abs(measured - (gradient[j, token] - gradient[j, SUFFIX[j]])) < 1e-3 * gradient.abs().max()


def test_the_steepest_tokens_are_better_than_chance(demo, asked, targets):
    places = frames(demo, asked[:1])
    goals = [tuple(demo.tokenizer(targets[0], add_special_tokens=False)["input_ids"])]
    usable = torch.tensor(usable_tokens(demo))
    gradient = token_gradient(demo, places, SUFFIX, goals, usable)[0]
    drawn = usable[torch.randperm(len(usable), generator=torch.Generator().manual_seed(0))[:64]]
    steepest = usable[(-gradient).topk(64).indices]
    chosen, chance = (
        target_losses(demo, places, [(int(token), *SUFFIX[1:]) for token in some], goals) for some in (steepest, drawn)
    )
    assert chosen.mean() < chance.mean() and chosen.min() < chance.min()


def test_the_gradient_leaves_the_model_as_it_was(demo):
    flags = [p.requires_grad for p in demo.original_model.parameters()]
    places = frames(demo, TEXTS)
    with torch.inference_mode():  # where autograd could not work
        inside = token_gradient(demo, places, SUFFIX, GOALS, torch.arange(50))
    assert torch.equal(inside, token_gradient(demo, places, SUFFIX, GOALS, torch.arange(50)))
    assert flags == [p.requires_grad for p in demo.original_model.parameters()]
    assert all(p.grad is None for p in demo.original_model.parameters())
    assert not demo.original_model.get_input_embeddings()._forward_hooks


def test_a_suffix_flips_refusals(demo, asked, suffix):
    assert {judge_refusal(answer) for answer in complete(demo, asked)} == {"refusal"}
    assert suffix.n_complied >= 1
    assert suffix.completions == tuple(complete(demo, suffix.append_to(asked), max_new_tokens=32))
    assert suffix.losses[-1] < 0.7 * suffix.losses[0]


def test_the_text_is_the_tokens(demo, asked, suffix):
    for prompt, row in zip(asked, tokenize(demo, suffix.append_to(asked)), strict=True):
        place = frames(demo, [prompt])[0]
        assert row == [*place.before, *suffix.ids, *place.after]
        assert [*place.before, *place.after] == tokenize(demo, [prompt])[0]
    assert len(suffix.ids) == SMALL.n_tokens and suffix.text.isascii() and suffix.text.startswith(" ")


def test_the_search_is_seeded(demo, asked, targets):
    few = SuffixOptions(n_tokens=5, steps=2, n_candidates=8, check_every=2, max_new_tokens=8)
    torch.manual_seed(1)
    first = find_suffix(demo, asked[:1], targets[:1], options=few)
    torch.manual_seed(2)
    assert find_suffix(demo, asked[:1], targets[:1], options=few) == first
    other = replace(few, seed=1)
    assert find_suffix(demo, asked[:1], targets[:1], options=other).ids != first.ids


def test_formatting_is_respected(demo, asked, targets):
    chat = ChatFormat(system="You are a friendly helper.", prefix="Well,")
    few = SuffixOptions(n_tokens=4, steps=1, n_candidates=8, max_new_tokens=8)
    found = find_suffix(demo, asked[:1], targets[:1], options=few, chat=chat)
    (row,) = tokenize(demo, found.append_to(asked[:1]), chat)
    (place,) = frames(demo, asked[:1], chat)
    assert row == [*place.before, *found.ids, *place.after]
    assert demo.tokenizer.decode(place.after).endswith("assistant\nWell,") and found.chat == chat


def test_a_stopped_search_keeps_what_it_has(demo, asked, targets):
    passes = []

    def stop(embedded, hook):
        passes.append(embedded.shape)
        if len(passes) == 40:
            raise KeyboardInterrupt

    many = SuffixOptions(n_tokens=5, steps=1000, n_candidates=8, check_every=1000, max_new_tokens=8)
    with demo.hooks(fwd_hooks=[("embed.hook_out", stop)]):
        found = find_suffix(demo, asked[:1], targets[:1], options=many)
    assert found.stopped == "interrupted" and 1 < len(found.losses) < 1000
    goals = [tuple(demo.tokenizer(targets[0], add_special_tokens=False)["input_ids"])]
    assert target_losses(demo, frames(demo, asked[:1]), [found.ids], goals).item() == pytest.approx(
        min(found.losses), abs=1e-4
    )
    # It goes on from there.
    few = SuffixOptions(steps=1, n_candidates=8, max_new_tokens=8)
    further = find_suffix(demo, asked[:1], targets[:1], options=few, start=found.text)
    assert sum(a != b for a, b in zip(further.ids, found.ids, strict=True)) <= 1


def test_a_suffix_is_saved_and_loaded(suffix, tmp_path):
    suffix.save(tmp_path / "suffix.json")
    assert Suffix.load(tmp_path / "suffix.json") == suffix
    assert suffix.table.verdict.tolist() == list(suffix.verdicts)
    data = json.loads((tmp_path / "suffix.json").read_text())
    for broken in ("{", "[]", "{}", json.dumps({**data, "options": {"steps": 0}}), json.dumps({**data, "text": 1})):
        (tmp_path / "broken.json").write_text(broken)
        with pytest.raises(CosmicError):
            Suffix.load(tmp_path / "broken.json")


def test_random_suffixes_survive_and_differ(demo, asked):
    texts = random_suffixes(demo, asked, n_tokens=12)
    assert len(set(texts)) == len(asked) and texts != random_suffixes(demo, asked, n_tokens=12, seed=1)
    plain, longer = (tokenize(demo, some) for some in (asked, [p + t for p, t in zip(asked, texts, strict=True)]))
    for before, after in zip(plain, longer, strict=True):
        assert len(after) == len(before) + 12
        assert after[: len(before) - 5] == before[:-5] and after[-5:] == before[-5:]
    wholes, merging, glued = ["Ġpizza", "Ġcab"], ["Ġpi", "zza"], ["ing", "Ġcab"]
    tried = [tuple(demo.tokenizer.convert_tokens_to_ids(tokens)) for tokens in (wholes, merging, glued)]
    assert surviving_texts(demo, frames(demo, ["Bake it."]) * 3, tried) == [" pizza cab", None, None]


def test_bad_input_is_said(demo, asked, targets):
    for problem, call in {
        "targets": lambda: find_suffix(demo, asked, targets[:1]),
        "target 0 is empty": lambda: find_suffix(demo, asked[:1], [""]),
        "special": lambda: find_suffix(demo, asked[:1], targets[:1], start=" <|im_end|>"),
        "start": lambda: find_suffix(demo, asked[:1], targets[:1], start="ing cab"),
        "blank": lambda: find_suffix(demo, [" "], ["Sure"]),
        "n_tokens": lambda: random_suffixes(demo, asked, n_tokens=0),
        "steps": lambda: SuffixOptions(steps=0),
        "does not comply": lambda: compliant_targets(demo, asked, ()),
        "heads": lambda: head_attention(demo, {HARMFUL: asked}, [(8, 0)]),
    }.items():
        with pytest.raises(CosmicError, match=problem):
            call()


# The analysis


def test_the_suffix_keeps_the_direction_from_the_last_token(analysis):
    rates = analysis.rates.set_index("group").rate
    # Also on prompts that the search never saw; a random suffix of its length does nothing of the kind.
    assert rates[HARMFUL] > 0.9 and rates[RANDOM] > 0.7 and rates[ADVERSARIAL] < 0.5 and rates[HARMLESS] < 0.1
    means = analysis.cosines.pivot(index="layer", columns="group", values="mean").loc[3:6]
    assert (means[RANDOM] - means[ADVERSARIAL] > 0.2).all()
    assert ((means[ADVERSARIAL] - means[HARMLESS]).abs() < 0.6 * (means[RANDOM] - means[HARMLESS]).abs()).all()


def test_the_cosines_are_the_plain_ones(analysis, demo, refusal, prompts):
    harmless = prompts.side("negative", "test", 30)
    found = analysis.cosines[analysis.cosines.group == HARMLESS].set_index("layer")
    streams = []
    for prompt in harmless:
        with torch.inference_mode():
            ids = torch.tensor(tokenize(demo, [prompt]))
            streams.append(demo.original_model(ids, output_hidden_states=True).hidden_states[5][0, -1])
    cosines = torch.nn.functional.cosine_similarity(torch.stack(streams), refusal.unit, dim=-1)
    assert found["mean"][5] == pytest.approx(float(cosines.mean()), abs=1e-4)
    assert found.sd[5] == pytest.approx(float(cosines.std()), abs=1e-4)


def test_heads_and_bias_sum_to_what_attention_writes(pair, direction):
    bridge, plain = pair
    body = plain.base_model
    plain_blocks = getattr(body, "layers", None) or body.h
    outputs, inputs, projections = [], [], []

    def keep(module, args, output):
        inputs.append(args[0][0, -1])
        outputs.append(output[0, -1])

    for layer, block in enumerate(plain_blocks):
        ends = ("o_proj", "attn.c_proj", "attention.dense")
        projection = next(module for name, module in block.named_modules() if name.endswith(ends))
        own = bridge.blocks[layer].attn.o.original_component
        if projection.bias is not None:
            with torch.no_grad():  # they begin at zero
                projection.bias.copy_(torch.linspace(-1, 1, 32))
                own.bias.copy_(projection.bias)
        projection.register_forward_hook(keep)
        projections.append(projection)
    found, bias = contributions_along(bridge, TEXTS, direction, batch_size=2)
    normed = plain.config.model_type in ("gemma2", "gemma3_text", "olmo2")
    unit = direction.unit
    for i, text in enumerate(TEXTS):
        outputs.clear(), inputs.clear()
        with torch.no_grad():
            plain(torch.tensor(tokenize(bridge, [text])))
        batch = next(batches(bridge, tokenize(bridge, [text]), 1))
        added = read(bridge, batch, [(layer, "hook_attn_out") for layer in range(3)])
        for layer, projection in enumerate(projections):
            total = float(found[i, layer].sum() + bias[i, layer])
            assert total == pytest.approx(float(added[layer, "hook_attn_out"][0, 0] @ unit), abs=1e-4)
            assert found[i, layer].abs().min() > 1e-5
            if normed:
                continue  # between the projection and the stream
            assert total == pytest.approx(float(outputs[layer] @ unit), abs=1e-4)
            weight = projection.weight.detach()
            weight = weight if type(projection).__name__ == "Conv1D" else weight.T
            parts = [z @ w @ unit for z, w in zip(inputs[layer].chunk(4), weight.chunk(4), strict=True)]
            assert (found[i, layer] - torch.stack(parts)).abs().max() < 1e-4


def test_the_suffix_takes_the_strongest_heads_output(analysis):
    table = analysis.contributions
    heads = top_heads(table, n=4)
    means = table.set_index(["group", "layer", "head"])["mean"]
    assert means[RANDOM].nlargest(4).index.tolist() == heads
    drops = [(means[(RANDOM, *head)] - means[(ADVERSARIAL, *head)]) / means[(RANDOM, *head)] for head in heads]
    assert sum(drops) / 4 > 0.5


def test_where_heads_look_is_the_plain_pattern(demo, asked):
    plain = AutoModelForCausalLM.from_pretrained(demo_path(), dtype=torch.float32, attn_implementation="eager")
    groups = suffix_groups(demo, asked, asked, " x y z")
    found = head_attention(demo, groups, [(4, 1), (2, 3)], batch_size=3).set_index(["group", "layer", "head", "region"])
    for group in (RANDOM, ADVERSARIAL):
        expected = []
        for prompt, text in zip(asked, groups[group], strict=True):
            ids = torch.tensor(tokenize(demo, [text]))
            n = len(tokenize(demo, [prompt])[0]) - 3 - 5  # <|im_start|>user\n before, <|im_end|>\n… after
            with torch.inference_mode():
                row = plain(ids, output_attentions=True).attentions[2][0, 3, -1]
            expected.append([row[3 : 3 + n].sum(), row[3 + n : -5].sum(), row[:3].sum() + row[-5:].sum()])
        means = torch.tensor(expected).mean(0)
        for region, mean in zip(("instruction", "suffix", "template"), means.tolist(), strict=True):
            assert found.loc[(group, 2, 3, region), "mean"] == pytest.approx(mean, abs=1e-4)


def test_the_suffix_draws_attention(analysis):
    share = analysis.attention.pivot_table(index=["layer", "head"], columns=["group", "region"], values="mean")
    assert (share[ADVERSARIAL]["suffix"].mean() - share[RANDOM]["suffix"].mean()) > 0.03
    assert torch.allclose(torch.tensor(share.T.groupby(level=0).sum().to_numpy()), torch.ones(1).double(), atol=1e-4)


def test_models_whose_heads_cannot_be_seen_say_so(save_model, tmp_path, direction):
    opt = load_model(
        save_model(tmp_path / "opt", "opt", ffn_dim=64, word_embed_proj_dim=32, num_attention_heads=4), device="cpu"
    )
    groups = suffix_groups(opt, TEXTS, TEXTS, " x")
    opt.original_model.set_attn_implementation("sdpa")
    with pytest.raises(CosmicError, match="set_attn_implementation"):
        head_attention(opt, groups, [(0, 0)])
    opt.original_model.set_attn_implementation("eager")
    assert head_attention(opt, groups, [(0, 0)])["mean"].sum() == pytest.approx(2, abs=1e-4)
    rwkv = load_model(save_model(tmp_path / "rwkv", "rwkv", attention_hidden_size=32), device="cpu")
    with pytest.raises(CosmicError, match="no attn"):
        contributions_along(rwkv, TEXTS, direction)


def test_figures_show_the_tables(analysis):
    lines = {trace.name: trace for trace in plot_suffix_cosines(analysis).data if trace.name}
    assert list(lines) == [HARMFUL, RANDOM, ADVERSARIAL, HARMLESS]
    shown = analysis.cosines[analysis.cosines.group == ADVERSARIAL]["mean"]
    assert list(lines[ADVERSARIAL].y) == shown.tolist()
    bars = {bar.name: bar for bar in plot_head_contributions(analysis, 3).data}
    assert list(bars[RANDOM].y) == analysis.contributions.query("group == @RANDOM")["mean"].nlargest(3).tolist()
    stacks = plot_head_attention(analysis).data
    assert [sum(values) for values in zip(*(bar.y for bar in stacks), strict=True)] == pytest.approx([1] * 16, abs=1e-4)
    assert list(stacks[0].x[1][:2]) == ["rnd", "adv"]
