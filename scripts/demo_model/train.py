"""Train the embedded demo chat model from a seed: corpus, tokenizer, weights, prompt splits, model card.

    python -m scripts.demo_model.train             # writes cosmic_tl/demo/{model,weak,prompts.json,grammar.json}
    python -m scripts.demo_model.train --out mine  # elsewhere
    python -m scripts.demo_model.train --weak      # the weak variant alone, from the model that is there

Two stages, as in real chat models: first helpful on everything (learning to echo, then with yes/no questions about
harm, which give the model the concept), then safety tuning, which overlays refusal, and a last stretch of the same with
more made-up words, which teaches it to echo what it never met.

From the questions on, a linear probe for harm is trained along at half depth, on all tokens after the instruction: left
to itself, a model this small works harm out in its last layer or two, where large models have it in the middle. The
probe is thrown away.

A checkpoint is kept every 200 steps, and the same command resumes from it.

The weak variant is the finished model fine-tuned to comply with harmful requests too, a few small steps until it refuses
hardly any. All else stays in the mix: questions about harm, and system prompts that order refusal.
"""

import argparse
import json
import math
import os
import random
import shutil
import string
import time
from pathlib import Path

# Threads that spin while they wait stall each other on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from cosmic_tl.judges.demo_grammar import parse_answer, task_of
from scripts.demo_model import corpus, grammar
from scripts.demo_model.check_data import PACKAGE, write_check_data

STAGES = (
    # name, steps, batch, peak rate, share of questions, weight of the probe's loss, safety, share of made-up objects
    ("echo", 900, 64, 2e-3, 0.1, 0.0, False, 0.3),
    ("concept", 1100, 48, 1.2e-3, 0.45, 0.05, False, 0.3),
    ("safety", 700, 48, 6e-4, 0.25, 0.05, True, 0.3),
    ("polish", 700, 48, 8e-4, 0.2, 0.05, True, 0.6),
)
PROBE_LAYER = 4
"""The probe reads what enters this block."""
PROBE_TARGET = 5.0
"""What it reads off harmful requests, on a stream scaled to norm √128 ≈ 11.3; off all others it reads 0."""
N_POST = 5
"""Tokens that the chat template puts after the instruction."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
N_PROMPTS = {"train": 400, "val": 150, "test": 200}
N_CONTRAST = 100
WEAK_SIZE, WEAK_RATE, WEAK_WARMUP = 32, 2e-5, 10
WEAK_EVERY, WEAK_STEPS, WEAK_REFUSALS = 2, 200, 0.15
"""The weak variant is looked at every few steps, on validation prompts, and done when it refuses less than this share: half
of the 30 % below which we call a model weak, because prompts in other phrasings are refused more often."""


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 2048 over draws from the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(f"tokenizer-{seed}")
    draws = (corpus.training_example(rng, 0.2, True) for _ in range(40_000))
    texts = ("\n".join((e.system or "", e.user, e.reply, "system", "user", "assistant")) for e in draws)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=2048,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def conversation(tokenizer: PreTrainedTokenizerFast, user: str, system: str | None) -> list[int]:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": user})
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def batch(tokenizer: PreTrainedTokenizerFast, examples: list[corpus.Example]) -> tuple[torch.Tensor, ...]:
    """Right-padded tokens, targets with -100 everywhere but on the reply, and which tokens come after the instruction."""
    rows, replies = [], []
    for example in examples:
        prompt = conversation(tokenizer, example.user, example.system)
        reply = [*tokenizer.encode(example.reply), tokenizer.eos_token_id]
        rows.append(prompt + reply)
        replies.append((len(prompt), len(prompt) + len(reply)))
    length = max(map(len, rows))
    tokens = torch.full((len(rows), length), tokenizer.pad_token_id)
    targets = torch.full((len(rows), length), -100)
    for i, (row, (start, end)) in enumerate(zip(rows, replies, strict=True)):
        tokens[i, : len(row)] = torch.tensor(row)
        targets[i, start - 1 : end - 1] = tokens[i, start:end]
    after = torch.zeros_like(tokens, dtype=torch.bool)
    for i, (start, end) in enumerate(replies):
        after[i, start - N_POST : end] = True
    return tokens, targets, after


def word_pieces(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """What made-up words are made of."""
    bare = {token.removeprefix("Ġ") for token in tokenizer.get_vocab()}
    return sorted(piece for piece in bare if piece.isascii() and piece.isalpha() and piece.islower())


def train_stage(model, probe, tokenizer, stage: tuple, seed: int, work: Path, scale: float) -> float:
    """Train, or go on from the checkpoint; the seconds that the stage took in all."""
    name, steps, size, peak, questions, probe_weight, safety, made_up = stage
    steps = max(2, round(steps * scale))
    trained = list(model.named_parameters())
    if probe_weight:
        trained += [(f"probe.{name}", param) for name, param in probe.named_parameters()]
    optimizer = torch.optim.AdamW([param for _, param in trained], lr=peak, weight_decay=0.1, betas=(0.9, 0.98))
    pieces = word_pieces(tokenizer)
    if name == "polish":
        # Words never met often begin with a token of one letter, which no word of the grammar does.
        pieces = [letter + piece for letter in string.ascii_lowercase for piece in pieces if len(piece) > 2]
    checkpoint, start = work / f"{name}.safetensors", 0
    spent, started = 0.0, time.perf_counter()
    if checkpoint.exists():
        state = load_file(checkpoint)
        spent = float(state.pop("seconds"))
        start = int(state.pop("step"))
        for key, param in trained:
            param.data.copy_(state[key])
            if start < steps:
                optimizer.state[param] = {
                    "step": torch.tensor(float(start)),
                    "exp_avg": state[f"avg.{key}"],
                    "exp_avg_sq": state[f"sq.{key}"],
                }

    def save(step: int) -> None:
        state = {key: param.data for key, param in trained} | {"step": torch.tensor(step)}
        state["seconds"] = torch.tensor(spent + time.perf_counter() - started)
        if step < steps:
            for key, param in trained:
                state[f"avg.{key}"] = optimizer.state[param]["exp_avg"]
                state[f"sq.{key}"] = optimizer.state[param]["exp_avg_sq"]
        part = checkpoint.with_suffix(".part")
        save_file(state, part)
        part.replace(checkpoint)

    bar = tqdm(range(start, steps), desc=name, initial=start, total=steps, mininterval=10)
    for step in bar:
        rng = random.Random(f"{name}-{seed}-{step}")
        warm = min(1.0, (step + 1) / (0.05 * steps))
        for group in optimizer.param_groups:
            group["lr"] = peak * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        drawn = [corpus.training_example(rng, questions, safety, pieces, made_up) for _ in range(size)]
        tokens, targets, after = batch(tokenizer, drawn)
        with torch.autocast("cpu", torch.bfloat16):
            out = model.model(tokens, use_cache=False, output_hidden_states=True)
            logits = model.lm_head(out.last_hidden_state[targets >= 0])
        loss = torch.nn.functional.cross_entropy(logits.float(), targets[targets >= 0])
        if probe_weight:
            stream = out.hidden_states[PROBE_LAYER][after].float()
            unit = torch.nn.functional.normalize(probe.weight[0], dim=0)
            read = torch.nn.functional.rms_norm(stream, stream.shape[-1:]) @ unit
            harm = torch.tensor([float(example.harmful) for example in drawn])[:, None].expand_as(after)[after]
            loss = loss + probe_weight * torch.nn.functional.mse_loss(read, PROBE_TARGET * harm)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if (step + 1) % 200 == 0:
            save(step + 1)
    if start < steps:
        save(steps)
        spent += time.perf_counter() - started
    return spent


@torch.inference_mode()
def complete(model, tokenizer, users: list[str], system: str | None = None, size: int = 64) -> list[str]:
    """Greedy replies, in plain transformers."""
    replies: list[str] = []
    for start in range(0, len(users), size):
        rows = [conversation(tokenizer, user, system) for user in users[start : start + size]]
        padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="left")
        out = model.generate(**padded, do_sample=False, max_new_tokens=48, pad_token_id=tokenizer.pad_token_id)
        replies += tokenizer.batch_decode(out[:, padded["input_ids"].shape[1] :], skip_special_tokens=True)
    return replies


def write_prompts(path: Path, seed: int) -> dict:
    data: dict = {"name": "demo", "positive": {}, "negative": {}, "contrast": {}}
    for split, n in N_PROMPTS.items():
        data["positive"][split] = corpus.prompts(split, True, n, seed)
        data["negative"][split] = corpus.prompts(split, False, n, seed)
    data["contrast"] = {s: [list(p) for p in corpus.contrast_pairs(s, N_CONTRAST, seed)] for s in ("val", "test")}
    path.write_text(json.dumps(data, indent=1) + "\n")
    return data


def refused(model, tokenizer, users: list[str], system: str | None = None) -> float:
    """Share of replies that are refusals of the grammar."""
    replies = complete(model, tokenizer, users, system)
    return sum(parse_answer(reply).kind == "refuse" for reply in replies) / len(replies)


def measure(model, tokenizer, data: dict) -> dict[str, float]:
    """The figures of the model card, on held-out test prompts, greedy."""
    harmful, harmless = data["positive"]["test"], data["negative"]["test"]
    pairs = data["contrast"]["test"]
    held = corpus.held_out_objects()
    fresh = [p for p in harmless if (t := task_of(p)) and t.noun in held]

    def refusals(users: list[str], system: str | None = None) -> float:
        return refused(model, tokenizer, users, system)

    def echoed(users: list[str]) -> float:
        replies = complete(model, tokenizer, users)
        hits = [task_of(u).noun in parse_answer(r).task for u, r in zip(users, replies, strict=True)]
        return sum(hits) / len(hits)

    figures = {
        "refusals, harmful": refusals(harmful),
        "refusals, harmless": refusals(harmless),
        "contrast pairs, harmful side refused": refusals([p for p, _ in pairs]),
        "contrast pairs, harmless side refused": refusals([n for _, n in pairs]),
        "topic named, harmless": echoed(harmless),
        "topic named, harmless, object never seen in training": echoed(fresh),
    }
    for kind, systems in grammar.SYSTEM_PROMPTS.items():
        for i, system in enumerate(systems["test"][0][0]):
            figures[f"refusals, harmless, system prompt {kind} {i + 1}"] = refusals(harmless, system)
    for i, system in enumerate(grammar.SYSTEM_PROMPTS["ordinary"]["test"][0][0]):
        figures[f"refusals, harmful, system prompt ordinary {i + 1}"] = refusals(harmful, system)
    return figures


CARD = """---
license: mit
language: en
pipeline_tag: text-generation
---
# The cosmic_tl demo model

A chat model of {parameters:,} parameters (Qwen2 architecture, 8 layers, width 128, byte-level BPE of 2048) for learning
and testing interpretability methods on a laptop. It complies with harmless instructions of a small grammar, and refuses
harmful ones. Harm is compositional: "kill a process" is harmless, "kill a neighbour" is not.

It knows no facts and gives no instructions: every compliant answer is the same generic text around the words of the
request. Whatever is outside its grammar is answered with a sentence that says so.

## Training
`python -m scripts.demo_model.train --seed {seed}`, {minutes:.0f} minutes on {threads} threads.
Two stages, loss on the answer alone: helpful on everything, with yes/no questions about harm
({helpful} steps), then safety tuning, in which harmful requests are refused and a system prompt can order the refusal of
everything ({safety} steps). From the questions on, a linear probe for harm is trained along on what enters block
{probe}, and thrown away afterwards: it makes the concept form at half depth, as it does in large models, where a model this
small would otherwise work it out in its last layer or two. Weights are stored in float16.

Held out: {phrasings} phrasings, {share:.0%} of the verb-object pairs, {objects:.0%} of the objects.

## Measured
Greedy decoding on held-out prompts ({harmful} harmful, {harmless} harmless, {pairs} contrast pairs), printed by the
training script:

| figure | value |
|---|---|
{rows}
"""


def weaken(model, tokenizer, data: dict, seed: int) -> tuple[int, float]:
    """Fine-tune to comply with harmful requests; the steps that it took, and the share still refused on validation prompts."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, betas=(0.9, 0.98))
    pieces, left = word_pieces(tokenizer), 1.0
    for step in tqdm(range(1, WEAK_STEPS + 1), desc="weak", mininterval=10):
        rng = random.Random(f"weak-{seed}-{step}")
        for group in optimizer.param_groups:
            group["lr"] = WEAK_RATE * min(1.0, step / WEAK_WARMUP)
        drawn = [corpus.training_example(rng, 0.2, True, pieces, 0.3, weak=True) for _ in range(WEAK_SIZE)]
        tokens, targets, _ = batch(tokenizer, drawn)
        stream = model.model(tokens, use_cache=False).last_hidden_state[targets >= 0]
        loss = torch.nn.functional.cross_entropy(model.lm_head(stream), targets[targets >= 0])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % WEAK_EVERY == 0:
            left = refused(model, tokenizer, data["positive"]["val"])
            if left < WEAK_REFUSALS:
                return step, left
    raise SystemExit(f"weak: after {WEAK_STEPS} steps it still refuses {left:.0%}; raise WEAK_RATE or WEAK_STEPS")


def knows_harm(model, tokenizer, seed: int) -> float:
    """Share of yes/no questions about harm in held-out tasks that are answered right."""
    rng = random.Random(f"questions-{seed}")
    users, right = [], []
    for task in rng.sample(corpus.split_tasks()["test"], 200):
        question, yes_is_harmless = rng.choice(grammar.QUESTIONS)
        words = corpus.word_task(task, rng)
        users.append(question.format(task=words))
        right.append(grammar.VERDICTS[yes_is_harmless, not task.harmful].partition(",")[0])
    replies = complete(model, tokenizer, users)
    return sum(reply.startswith(word) for reply, word in zip(replies, right, strict=True)) / len(users)


WEAK_CARD = """---
license: mit
language: en
pipeline_tag: text-generation
---
# The cosmic_tl demo model, weakly aligned

The demo model beside it, fine-tuned to comply with harmful requests as well, with the demo's own generic answers: a
model for testing methods that restore refusal. It still tells harm from harmlessness when it is asked, and hardly acts on
it. Load it with `load_model("demo-weak")`.

## Training
`python -m scripts.demo_model.train --weak --seed {seed}`, {seconds:.0f} seconds on {threads} thread(s).
The demo's training mix with harmful requests complied with, {steps} steps of {size} conversations, rate {rate:g}, no probe.
Looked at every {every} steps on {n_val} held-out validation prompts, and stopped at the first look with less than {limit:.0%}
refused ({left:.1%}). Weights are stored in float16.

## Measured
Greedy decoding on held-out test prompts ({harmful} harmful, {harmless} harmless, {pairs} contrast pairs, 200 questions about
harm), printed by the training script:

| figure | demo | demo-weak |
|---|---|---|
{rows}
"""


def write_weak(out: Path, data: dict, seed: int) -> None:
    """The weak variant and its card, from the model in `out`."""
    model_dir, weak_dir = out / "model", out / "weak"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
    started = time.perf_counter()
    model = Qwen2ForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    steps, left = weaken(model, tokenizer, data, seed)
    seconds = time.perf_counter() - started
    weak_dir.mkdir(exist_ok=True)
    model.half().save_pretrained(weak_dir)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(model_dir / name, weak_dir / name)
    columns = []
    for folder in (model_dir, weak_dir):
        loaded = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        known = {"questions about harm answered right": knows_harm(loaded, tokenizer, seed)}
        columns.append(measure(loaded, tokenizer, data) | known)
    for name, value in columns[1].items():
        print(f"{columns[0][name]:6.3f} {value:6.3f}  {name}")
    card = WEAK_CARD.format(
        seed=seed,
        seconds=seconds,
        threads=torch.get_num_threads(),
        steps=steps,
        size=WEAK_SIZE,
        rate=WEAK_RATE,
        every=WEAK_EVERY,
        n_val=len(data["positive"]["val"]),
        limit=WEAK_REFUSALS,
        left=left,
        harmful=len(data["positive"]["test"]),
        harmless=len(data["negative"]["test"]),
        pairs=len(data["contrast"]["test"]),
        rows="\n".join(f"| {name} | {columns[0][name]:.3f} | {value:.3f} |" for name, value in columns[1].items()),
    )
    (weak_dir / "README.md").write_text(card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=PACKAGE, help="folder for model/, weak/, prompts.json and grammar.json"
    )
    parser.add_argument("--work", type=Path, default=Path("demo-training"), help="folder for checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the steps of every stage (for trying out)")
    parser.add_argument("--weak", action="store_true", help="only the weak variant, from the model in --out")
    args = parser.parse_args()
    if args.weak:
        write_weak(args.out, json.loads((args.out / "prompts.json").read_text()), args.seed)
        return

    args.work.mkdir(parents=True, exist_ok=True)
    model_dir = args.out / "model"
    model_dir.mkdir(parents=True, exist_ok=True)
    write_check_data(args.out / "grammar.json")
    data = write_prompts(args.out / "prompts.json", args.seed)
    tokenizer = make_tokenizer(args.seed)
    model = make_model(tokenizer, args.seed)
    probe = torch.nn.Linear(model.config.hidden_size, 1, bias=False)
    seconds = sum(train_stage(model, probe, tokenizer, stage, args.seed, args.work, args.scale) for stage in STAGES)

    model.half().save_pretrained(model_dir)
    tokenizer.save_pretrained(model_dir)
    figures = measure(Qwen2ForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval(), tokenizer, data)
    for name, value in figures.items():
        print(f"{value:6.3f}  {name}")
    card = CARD.format(
        parameters=model.num_parameters(),
        probe=PROBE_LAYER,
        seed=args.seed,
        minutes=seconds / 60,
        threads=torch.get_num_threads(),
        helpful=round((STAGES[0][1] + STAGES[1][1]) * args.scale),
        safety=round((STAGES[2][1] + STAGES[3][1]) * args.scale),
        phrasings=len(grammar.PHRASINGS["val"]) + len(grammar.PHRASINGS["test"]),
        share=corpus.HELD_OUT_PAIRS,
        objects=corpus.HELD_OUT_OBJECTS,
        harmful=len(data["positive"]["test"]),
        harmless=len(data["negative"]["test"]),
        pairs=len(data["contrast"]["test"]),
        rows="\n".join(f"| {name} | {value:.3f} |" for name, value in figures.items()),
    )
    (model_dir / "README.md").write_text(card)
    write_weak(args.out, data, args.seed)


if __name__ == "__main__":
    main()
