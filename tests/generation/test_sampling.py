"""Completions follow what was asked for, whatever a checkpoint's generation_config says."""

import json
from dataclasses import asdict

import pytest
import torch

from cosmic_tl import CosmicError, RunSettings, Sampling, complete, load_model, measure_effects, sweep
from cosmic_tl.experiments.conditions import Condition
from cosmic_tl.generation.completions import answer_batches
from cosmic_tl.generation.sampling import describe_generation, generation_sentence, random_state_kept
from cosmic_tl.interventions.edits import AffineEdit
from cosmic_tl.model.chat import tokenize

TEXTS = ["How do I bake a pizza?", "hello", "Tell me a story."]
OWN = {"do_sample": True, "repetition_penalty": 1.5, "temperature": 0.7, "top_k": 2, "top_p": 0.5}
NEW = 24


@pytest.fixture(scope="module")
def opinionated(tmp_path_factory, save_model):
    """A checkpoint with defaults that change every completion."""
    folder = save_model(tmp_path_factory.mktemp("opinionated"), "qwen2")
    own = {"eos_token_id": [2, 5], "pad_token_id": 0, "no_repeat_ngram_size": 2, "suppress_tokens": [9], **OWN}
    (folder / "generation_config.json").write_text(json.dumps(own))
    return load_model(folder, device="cpu")


def by_hand(model, text, choose):
    """Tokens one by one, each from the logits of a whole pass."""
    ids = tokenize(model, [text])[0]
    n = len(ids)
    while len(ids) < n + NEW:
        with torch.inference_mode():
            logits = model.original_model(torch.tensor([ids])).logits[0, -1].float()
        logits = logits.clone()
        ids.append(int(choose(logits)))
        if ids[-1] in (2, 5):
            break
    return model.tokenizer.decode(ids[n:], skip_special_tokens=True).strip()


def test_greedy_is_the_most_likely_token(opinionated):
    expected = [by_hand(opinionated, text, torch.argmax) for text in TEXTS]
    assert complete(opinionated, TEXTS, max_new_tokens=NEW) == expected
    assert [complete(opinionated, [text], max_new_tokens=NEW)[0] for text in TEXTS] == expected
    own = opinionated.original_model.generation_config
    assert (own.repetition_penalty, own.top_k, own.do_sample) == (1.5, 2, True)  # it is given back


def test_temperature_1_is_the_models_own_distribution(opinionated):
    for seed in range(3):
        torch.manual_seed(seed)
        expected = by_hand(opinionated, TEXTS[0], lambda logits: torch.multinomial(logits.softmax(-1), 1))
        assert complete(opinionated, TEXTS[:1], max_new_tokens=NEW, temperature=1.0, seed=seed) == [expected]


def test_each_batch_is_sampled_by_itself(opinionated):
    how = {"max_new_tokens": NEW, "temperature": 1.0, "seed": 5}
    found = complete(opinionated, TEXTS[:1] * 6, batch_size=2, **how)
    assert found[:2] == complete(opinionated, TEXTS[:1] * 2, **how)
    rows = tokenize(opinionated, TEXTS[:1] * 6)
    seeds = [seed for _, seed in answer_batches(opinionated, rows, NEW, 2, 5)]
    assert seeds[0] == 5 and len(set(seeds)) == 3
    assert found[4:] == complete(opinionated, TEXTS[:1] * 2, **{**how, "seed": seeds[2]})
    assert len(set(found)) == 6  # no two batches draw the same numbers


def test_out_of_memory_halves_the_batch(demo, prompts, monkeypatch):
    asked = prompts.side("positive", "test", 5)
    expected, plain, sizes = complete(demo, asked, max_new_tokens=NEW), demo.original_model.generate, []

    def small(ids, **options):
        sizes.append(len(ids))
        if len(ids) > most:
            raise torch.OutOfMemoryError("out of memory")
        return plain(ids, **options)

    monkeypatch.setattr(demo.original_model, "generate", small)
    most = 2
    assert complete(demo, asked, max_new_tokens=NEW) == expected
    assert sizes[-5:] == [5, 2, 3, 1, 2]
    most = 0
    with pytest.raises(CosmicError, match="memory: not enough for one answer"):
        complete(demo, asked, max_new_tokens=NEW)


def test_top_k_top_p_and_a_penalty_act_when_asked_for(opinionated):
    greedy = complete(opinionated, TEXTS, max_new_tokens=NEW)
    one = {"temperature": 1.0, "max_new_tokens": NEW}
    assert complete(opinionated, TEXTS, sampling=Sampling(top_k=1), **one) == greedy
    assert complete(opinionated, TEXTS, sampling=Sampling(top_p=1e-6), **one) == greedy
    assert complete(opinionated, TEXTS, **one) != greedy
    penalised = complete(opinionated, TEXTS, max_new_tokens=NEW, sampling=Sampling(repetition_penalty=1.5))
    assert penalised != greedy

    seen = tokenize(opinionated, TEXTS[:1])[0]

    def choose(logits):
        for token in set(seen):
            logits[token] = logits[token] / 1.5 if logits[token] > 0 else logits[token] * 1.5
        seen.append(int(logits.argmax()))
        return seen[-1]

    assert penalised[0] == by_hand(opinionated, TEXTS[0], choose)


def test_results_say_how_they_were_generated(opinionated, direction):
    conditions = [Condition("baseline", "positive", ()), Condition("baseline", "negative", ())]
    effects = measure_effects(opinionated, (TEXTS[:1], TEXTS[1:2]), conditions=conditions, max_new_tokens=4)
    assert effects.generation["repetition_penalty"] == 1.0 and effects.generation["eos_token_id"] == [2, 5]
    assert effects.generation["unused"] == {k: v for k, v in OWN.items() if k != "do_sample"} | {
        "no_repeat_ngram_size": 2
    }
    assert "repetition penalty 1.5" in generation_sentence(effects.generation)
    found = sweep(
        opinionated,
        (TEXTS[:1], TEXTS[1:2]),
        direction,
        alphas=(1.0,),
        methods={"affine": AffineEdit},
        max_new_tokens=4,
        temperature=0.5,
        sampling=Sampling(top_k=7),
    )
    assert (found.generation["temperature"], found.generation["top_k"]) == (0.5, 7)
    assert generation_sentence(found.generation).startswith("Sampled at temperature 0.5, top-k 7, at most 4")
    assert json.loads(json.dumps(found.generation)) == found.generation


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty"),
    ],
)
def test_values_out_of_range_are_named(values, name):
    with pytest.raises(CosmicError, match=f"^{name}: "):
        Sampling(**values)


def test_settings_that_greedy_decoding_ignores_are_refused_before_any_work():
    with pytest.raises(CosmicError, match="top_k, top_p: greedy"):
        RunSettings(sampling=Sampling(top_p=0.9))
    assert asdict(RunSettings(temperature=1.0, sampling=Sampling(top_p=0.9)))["sampling"]["top_p"] == 0.9


def test_end_tokens_fall_back_to_config_and_tokenizer(demo):
    assert describe_generation(demo, 4)["eos_token_id"] == [2]


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_sampling_leaves_the_random_state_of_every_device(demo, monkeypatch, kind):
    """`torch.manual_seed` sets all of them; a dictionary stands in for two devices of a kind."""
    states, module = {0: "first", 1: "second"}, torch.get_device_module(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: len(states))
    monkeypatch.setattr(module, "get_rng_state", lambda device: states[device])
    monkeypatch.setattr(module, "set_rng_state", lambda state, device: states.update({device: state}))

    def seeded(*_):
        states.update(dict.fromkeys(states, "seeded"))

    before = torch.get_rng_state()
    handle = demo.original_model.register_forward_pre_hook(seeded)
    try:
        complete(demo, ["hello"], temperature=1.0, seed=3, max_new_tokens=4)
    finally:
        handle.remove()
    assert states == {0: "first", 1: "second"}
    with random_state_kept():
        seeded(torch.manual_seed(7))
    assert states == {0: "first", 1: "second"} and torch.equal(torch.get_rng_state(), before)


def test_a_cache_that_attention_ignores_is_refused(save_model, tmp_path):
    """As with a transformers that hands its cache on under another name: each new token would see itself alone."""
    model = load_model(save_model(tmp_path, "qwen2"), device="cpu")
    assert complete(model, ["hello"], max_new_tokens=4)
    other = load_model(tmp_path, device="cpu")
    for layer in other.original_model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "past_key_values": None}), with_kwargs=True
        )
    with pytest.raises(CosmicError, match=r"with a key-value cache differ .* try 'transformers<5\.24'") as caught:
        complete(other, ["hello"], max_new_tokens=4)
    assert "\n" not in str(caught.value)
