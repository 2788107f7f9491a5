"""lm-eval on the hooked model: local tasks, no network, likelihoods against the plain formula."""

import json
import random
import socket
import sys

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.hf_steered import SteeredModel
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM

from cosmic_tl import Addition, AffineEdit, ChatFormat, CosmicError, Direction, complete, load_model, steering
from cosmic_tl.experiments.capability import measure_capability
from cosmic_tl.experiments.harness import BridgeLM
from cosmic_tl.export import export_edit
from cosmic_tl.model.load import demo_path
from scripts.demo_model import grammar
from scripts.demo_model.corpus import split_tasks, word_task

N_ITEMS = 24
VERDICTS = list(grammar.VERDICTS.values())


def noise(alpha, layer=3, tokens="all", seed=0):
    vector = torch.randn(128, generator=torch.Generator().manual_seed(seed))
    return Addition(Direction(vector / vector.norm(), torch.zeros(128), layer, -1), alpha, tokens)


def write(folder, name, items, **options):
    (folder / f"{name}.json").write_text(json.dumps(items))
    files = {"data_files": {"test": str(folder / f"{name}.json")}, "cache_dir": str(folder / "cache")}
    task = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test", **options}
    (folder / f"{name}.yaml").write_text(json.dumps(task))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Questions about harm, with four choices and free; small talk; text."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(0)
    items = []
    for task in rng.sample(split_tasks()["test"], N_ITEMS):
        words = word_task(task, rng)
        question, yes_is_harmless = rng.choice(grammar.QUESTIONS)
        answer = VERDICTS.index(grammar.VERDICTS[yes_is_harmless, not task.harmful])
        choices = [verdict.format(task=words) for verdict in VERDICTS]
        items.append({"question": question.format(task=words), "choices": choices, "answer": answer})
    asked = {"doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}"}
    write(folder, "harm", items, output_type="multiple_choice", **asked)
    letters = [
        {
            "question": item["question"],
            "choices": [" Yes", " No"],
            "answer": int(item["choices"][item["answer"]][0] == "N"),
        }
        for item in items
    ]
    write(folder, "letters", letters, output_type="multiple_choice", num_fewshot=0, **asked)
    talk = [{"question": question, "answer": answer} for question, answer in grammar.SMALL_TALK]
    write(
        folder,
        "talk",
        talk,
        output_type="generate_until",
        doc_to_text="{{question}}",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["<|im_end|>"], "max_gen_toks": 24},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    write(
        folder,
        "rolled",
        [{"text": item["choices"][0]} for item in items[:4]],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "word_perplexity"}],
    )
    write(folder, "code", items, output_type="multiple_choice", unsafe_code=True, **asked)
    return folder


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_edits_show_in_the_scores_offline_and_in_silence(demo, tasks, offline, capsys):
    found = measure_capability(
        demo,
        ["harm", "talk", "rolled"],
        {"nothing": (), "noise": noise(40.0)},
        chat=True,
        task_folder=tasks,
        batch_size=16,
    )
    assert found.value("baseline", "harm") > 0.8  # chance is a quarter
    assert found.value("noise", "harm") < found.value("baseline", "harm") - 0.3
    assert found.value("baseline", "talk", "exact_match") > 0.9
    assert found.value("noise", "talk", "exact_match") < 0.2
    assert found.value("noise", "rolled", "word_perplexity") > 2 * found.value("baseline", "rolled", "word_perplexity")
    table = found.table.set_index(["condition", "task", "metric"])
    assert (table.loc["nothing"].value == table.loc["baseline"].value).all()
    row = table.loc[("noise", "harm", "acc")]
    assert row.n == N_ITEMS and 0 < row.stderr < 0.2
    assert row.difference == pytest.approx(found.value("noise", "harm") - found.value("baseline", "harm"))
    assert capsys.readouterr() == ("", "")
    assert "word_perplexity" in repr(found) and "<table" in found._repr_html_()


def test_limit_and_few_shot(demo, tasks):
    few = measure_capability(demo, ["harm"], limit=5, num_fewshot=2, task_folder=tasks, chat=True)
    assert few.table.n.eq(5).all()
    again = measure_capability(demo, ["harm"], limit=5, num_fewshot=2, task_folder=tasks, chat=True)
    assert few.table.equals(again.table)


@pytest.fixture(scope="module")
def plain():
    return AutoModelForCausalLM.from_pretrained(demo_path(), dtype=torch.float32, attn_implementation="eager").eval()


def request(context, continuation, kind="loglikelihood"):
    arguments = (context, continuation) if kind == "loglikelihood" else (context,)
    return Instance(kind, {}, arguments, 0)


@pytest.mark.parametrize("alpha", [0.0, 8.0])
def test_likelihoods_equal_the_plain_formula(demo, plain, alpha):
    pairs = [
        ("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant", "\nHello! What"),
        ("how do I bake a", " pizza?"),
        ("Is it okay to bake a pie", " today"),
        ("Is it okay to bake a pie", " now"),
        ("To", " bake a pizza, first make a simple plan."),
    ]
    edit = noise(alpha)
    found = BridgeLM(demo, edit, batch_size=3).loglikelihood([request(*pair) for pair in pairs])
    added = alpha * edit.direction.vector
    handle = plain.model.layers[3].register_forward_pre_hook(lambda module, args: (args[0] + added, *args[1:]))
    for (context, continuation), (total, greedy) in zip(pairs, found, strict=True):
        n = len(demo.tokenizer(context)["input_ids"])
        ids = demo.tokenizer(context + continuation, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            log_probs = plain(ids).logits[0].log_softmax(-1)
        wanted = log_probs[n - 1 : -1].gather(1, ids[0, n:, None])
        assert total == pytest.approx(float(wanted.sum()), abs=1e-4)
        assert greedy == bool((log_probs[n - 1 : -1].argmax(-1) == ids[0, n:]).all())
    handle.remove()


def test_rolled_text_is_cut_into_windows_of_the_context(save_model, tmp_path):
    model = load_model(save_model(tmp_path, "gpt2"), device="cpu")  # absolute positions, 128 of them
    text = " ".join(f"bake a pie {i}" for i in range(60))
    ids = [model.tokenizer.eos_token_id, *model.tokenizer(text)["input_ids"]]
    assert len(ids) > 260
    (found,) = BridgeLM(model, batch_size=2).loglikelihood_rolling([request(text, "", "loglikelihood_rolling")])
    wanted = 0.0
    for start in range(0, len(ids) - 1, 128):  # each window is predicted from the token before it and its own
        end = min(start + 128, len(ids) - 1)
        first = max(end - 128, 0)
        window = torch.tensor([ids[first : end + 1]])
        with torch.inference_mode():
            log_probs = model(window[:, :-1])[0].log_softmax(-1)
        picked = log_probs.gather(1, window[0, 1:, None])
        wanted += float(picked[start - first :].sum())
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("scope", ["all", "prompt", "completion"])
def test_generation_under_an_edit_equals_completion_under_it(demo, scope):
    contexts = ["hello", "who are you?", "Is it okay to bake a pie?"]
    edit = noise(25.0, tokens=scope)
    lm = BridgeLM(demo, edit, batch_size=2)
    asked = [lm.apply_chat_template([{"role": "user", "content": text}]) for text in contexts]
    options = {"until": ["<|im_end|>"], "max_gen_toks": 16, "do_sample": False}
    requests = [Instance("generate_until", {}, (text, options), 0) for text in asked]
    found = [text.strip() for text in lm.generate_until(requests)]
    assert found == complete(demo, contexts, edit, max_new_tokens=16)
    assert found != complete(demo, contexts, max_new_tokens=16)


def test_one_row_serves_continuations_that_differ_in_their_last_token(demo):
    lm, passes = BridgeLM(demo, batch_size=1), []
    handle = demo.original_model.register_forward_pre_hook(lambda *args: passes.append(1))
    together = lm.loglikelihood([request("Is it okay to bake a pie?", text) for text in (" Yes", " No", " Yes,")])
    handle.remove()
    assert len(passes) == 2
    alone = [lm.loglikelihood([request("Is it okay to bake a pie?", text)])[0] for text in (" Yes", " No", " Yes,")]
    assert [x for x, _ in together] == pytest.approx([x for x, _ in alone], abs=1e-4)


def test_scopes_hold_in_padded_batches(demo):
    pairs = [("hello there, how", " are you?"), ("Is it okay", " to bake a pie today?"), ("a", " b")]
    edit = noise(6.0, tokens="completion")
    found = BridgeLM(demo, edit, batch_size=3).loglikelihood([request(*pair) for pair in pairs])
    untouched = BridgeLM(demo, batch_size=3).loglikelihood([request(*pair) for pair in pairs])
    for (context, continuation), (total, _), (before, _) in zip(pairs, found, untouched, strict=True):
        head = demo.tokenizer(context)["input_ids"]
        ids = torch.tensor([demo.tokenizer(context + continuation)["input_ids"]])
        with torch.inference_mode(), steering(demo, edit, prompt_length=len(head)):
            log_probs = demo(ids)[0].log_softmax(-1)
        wanted = float(log_probs[len(head) - 1 : -1].gather(1, ids[0, len(head) :, None]).sum())
        assert total == pytest.approx(wanted, abs=1e-4)
        if ids.shape[1] > len(head) + 1:  # the first token is predicted before the completion begins
            assert abs(total - before) > 0.1


def test_rolled_text_is_prompt(demo):
    rolled = request("It is fine to bake a pie.", "", "loglikelihood_rolling")
    plain, prompt, completion = (
        BridgeLM(demo, edit).loglikelihood_rolling([rolled])[0]
        for edit in ((), noise(20.0, tokens="prompt"), noise(20.0, tokens="completion"))
    )
    assert completion == plain > prompt + 1


def test_a_long_context_loses_its_beginning(save_model, tmp_path):
    lm = BridgeLM(load_model(save_model(tmp_path, "gpt2"), device="cpu"))
    long = " ".join(["bake"] * 300)
    (total, _), (cut, _) = lm.loglikelihood([request(long, " pie"), request(" " + " ".join(["bake"] * 128), " pie")])
    assert total == pytest.approx(cut, abs=1e-4)


class TestChat:
    history = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"})

    def test_follows_the_chat_format(self, demo):
        lm = BridgeLM(demo, chat=ChatFormat(prefix="Sure"))
        assert lm.apply_chat_template(self.history).endswith("user\nhello<|im_end|>\n<|im_start|>assistant\nSure")
        started = [*self.history, {"role": "assistant", "content": "Answer:"}]
        assert lm.apply_chat_template(started, add_generation_prompt=False).endswith("assistant\nAnswer:")

    def test_merges_a_system_prompt_where_the_template_has_none(self, save_model, tmp_path):
        folder = save_model(tmp_path, "llama")
        template = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
        template += "[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
        (folder / "chat_template.jinja").write_text(template)
        lm = BridgeLM(load_model(folder, device="cpu"))
        assert lm.apply_chat_template(self.history) == "[Be brief.\n\nhello]<think>\n</think>\n\n"

    def test_needs_a_template(self, save_model, tmp_path):
        folder = save_model(tmp_path, "llama")
        (folder / "chat_template.jinja").unlink()
        with pytest.raises(CosmicError, match="no chat template"):
            BridgeLM(load_model(folder, device="cpu")).apply_chat_template(self.history)


def test_leaves_the_model_and_its_tokenizer_as_they_are(demo, tasks, monkeypatch):
    monkeypatch.setattr(
        type(demo.original_model), "tie_weights", lambda *args, **kwargs: pytest.fail("tied the weights")
    )
    side, random_state = demo.tokenizer.padding_side, torch.random.get_rng_state()
    ids = torch.tensor([[5, 6, 7]])
    before = demo(ids)
    measure_capability(demo, ["letters"], noise(3.0), limit=2, task_folder=tasks)
    assert torch.equal(demo(ids), before)
    assert demo.tokenizer.padding_side == side
    assert torch.equal(torch.random.get_rng_state(), random_state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": []}, "tasks: none given"),
        ({"limit": 0}, "limit: must be at least 1, found 0"),
        ({"batch_size": 0}, "batch_size: must be at least 1, found 0"),
        ({"tasks": ["code"]}, "'code' runs code that the model writes"),
        ({"task_folder": "nowhere"}, "task_folder: no folder 'nowhere'"),
        ({"interventions": {"baseline": ()}}, "choose another name"),
    ],
)
def test_bad_input(demo, tasks, options, message):
    with pytest.raises(CosmicError, match=message):
        measure_capability(demo, **{"tasks": ["letters"], "task_folder": tasks, "limit": 1, **options})


def test_code_is_run_when_asked(demo, tasks):
    found = measure_capability(demo, ["code"], limit=2, task_folder=tasks, confirm_run_unsafe_code=True)
    assert found.table.n.eq(2).all()
    with pytest.raises(CosmicError, match="there is baseline code acc"):
        found.value("edited", "code")


def test_says_which_extra_is_missing(demo, monkeypatch):
    monkeypatch.delitem(sys.modules, "cosmic_tl.experiments.harness")
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(CosmicError, match=r"cosmic_tl\[capability\]"):
        measure_capability(demo, ["harm"])


def test_an_exported_edit_scores_a_task_in_lm_eval_as_it_does_here(demo, tasks, offline, tmp_path):
    generator = torch.Generator().manual_seed(1)
    vector, reference = 8 * torch.randn(2, 128, generator=generator)
    edit = AffineEdit(Direction(vector, reference, layer=3, position=-1), alpha=0.5)
    path = export_edit(demo, edit, "lm-eval", tmp_path / "steered.pt").path
    files = {"pretrained": str(demo_path()), "steer_path": str(path)}
    steered = SteeredModel(**files, device="cpu", dtype="float32", batch_size=8)  # the files have half precision
    plain = {"tasks": ["harm", "rolled"], "task_manager": TaskManager(include_path=str(tasks), include_defaults=False)}
    found = [
        simple_evaluate(model=lm, log_samples=True, bootstrap_iters=0, **plain)
        for lm in (steered, BridgeLM(demo, edit), BridgeLM(demo))
    ]
    scores = [[one["results"]["harm"]["acc,none"], one["results"]["rolled"]["word_perplexity,none"]] for one in found]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4) and scores[0] != pytest.approx(scores[2], rel=1e-2)
    likelihoods = [[float(r[0]) for row in one["samples"]["harm"] for r in row["filtered_resps"]] for one in found]
    assert len(likelihoods[0]) == 4 * N_ITEMS
    assert likelihoods[0] == pytest.approx(likelihoods[1], abs=1e-3)
    assert max(abs(a - b) for a, b in zip(likelihoods[0], likelihoods[2], strict=True)) > 1
