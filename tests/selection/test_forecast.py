"""Plans say how much memory a selection takes, and how long."""

from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoTokenizer, LlamaConfig

from benchmarks.shapes import SHAPES as PAPER
from cosmic_tl import (
    ChatFormat,
    CosmicError,
    CosmicOptions,
    load_model,
    load_on_paper,
    plan_selection,
    select_cosmic,
)
from cosmic_tl.engine import passes
from cosmic_tl.model.load import demo_path
from cosmic_tl.selection import Forecast, MemoryUse, Plan, memory_use
from cosmic_tl.selection.pass_costs import block_costs, padded_macs
from cosmic_tl.selection.pass_timing import PassTiming, _line, time_passes
from cosmic_tl.selection.peak_memory import ModelShape, SideShape
from cosmic_tl.selection.scores import Scorer

TOLERANCE = 1.25
LONG = ChatFormat(system="You are a helpful person. Please answer what is asked.")


def allocated(work):
    """The most bytes of tensors that work holds at once, temporary ones included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = sorted(
        (event.start_ns(), event.nbytes())
        for event in found.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    return max(pd.Series([size for _, size in events]).cumsum())


SHAPES = {
    "wide after a prefix": ({"hidden_size": 512, "intermediate_size": 2048}, LONG),
    "many words": ({"vocab_size": 32_768}, None),
    "deep": ({"num_hidden_layers": 12, "hidden_size": 128, "num_attention_heads": 4}, LONG),
}


@pytest.mark.parametrize("name", SHAPES)
def test_memory_is_what_tensors_take(save_model, prompts, tmp_path, name):
    extra, chat = SHAPES[name]
    model = load_model(save_model(tmp_path, "qwen2", **extra), device="cpu")
    options = CosmicOptions(n_train=12, n_val=12, max_kl=1e9, evaluation_layers=(2,), n_resamples=0)
    memory = plan_selection(model, prompts, options, chat=chat).forecast.memory
    select_cosmic(model, prompts, replace(options, n_train=2, n_val=2), chat=chat)  # what is tried once per model
    found = allocated(lambda: select_cosmic(model, prompts, options, chat=chat))
    predicted = memory.total - memory.weights
    assert found / TOLERANCE < predicted < found * TOLERANCE, memory
    assert memory.weights == sum(4 * p.numel() for p in model.original_model.parameters())


def test_passes_are_those_that_the_engine_makes(demo, prompts, monkeypatch):
    options = CosmicOptions(n_train=8, n_val=16, evaluation_layers=(3,), max_kl=1e9, n_resamples=0)
    stages = plan_selection(demo, prompts, options, chat=LONG).forecast.stages.set_index("stage").passes
    made = Counter()
    whole, run = Scorer.passes, passes.Steered._forward

    def measured(self, measure, cells, left):
        made["measure"] = measure
        return whole(self, measure, cells, left)

    def counted(self, *args, **kwargs):
        made[made["measure"]] += bool(self.hooks)  # the clean model has none
        return run(self, *args, **kwargs)

    monkeypatch.setattr(Scorer, "passes", measured)
    monkeypatch.setattr(passes.Steered, "_forward", counted)
    select_cosmic(demo, prompts, options, chat=LONG)
    # What enters layer 0 at the template's tokens is the same on both sides: one source layer of four has no directions.
    assert made["s_comply"] == stages["s_comply"] * 3 // 4 > 0
    assert made["s_refuse"] == stages["s_refuse"] * 3 // 4 > 0
    assert made["kl"] == stages["kl of one"] > 0


def test_of_offloaded_blocks_one_counts_and_the_streams_that_wait():
    shape = ModelShape(80, 8192, 64, 8, 128, 29_568, 152_064, 2, weights=10**9, block=2 * 10**9)
    side = SideShape(0, 5, ((20, 30),) * 5)
    here, away = (memory_use(one, [side, side], n_positions=5) for one in (replace(shape, block=0), shape))
    assert away.weights == 3 * 10**9 and away.stream - here.stream == 2 * 10**9  # as much as a block's weights
    few = memory_use(shape, [SideShape(0, 1, ((1, 10),))] * 2, n_positions=1)
    assert few.stream == (2 * 10 + 80 * 10) * 8192 * 2  # all candidates have room


def test_seconds_follow_from_the_probe(demo, prompts):
    plan = plan_selection(demo, prompts, CosmicOptions(n_train=8, n_val=8), probe=True)
    found = plan.forecast
    assert (
        found.timing.per_mac > 0 and found.seconds == pytest.approx(sum(found.by_stage.values())) and found.seconds > 0
    )
    assert "s on this machine" in repr(plan) and "peak memory" in repr(plan)
    serial = found.by_stage["clean passes"] + found.by_stage["kl of one"]
    assert found.with_workers(1, start=2.0) == pytest.approx(found.seconds + 2)
    assert found.with_workers(4) == pytest.approx(serial + (found.seconds - serial) / 4)
    with pytest.raises(CosmicError, match="workers: "):
        found.with_workers(0)
    without = plan_selection(demo, prompts, CosmicOptions(n_train=8, n_val=8)).forecast
    assert without.seconds is None and without.with_workers(2) is None and not without.by_stage


def test_a_probe_reads_the_clock_that_it_is_given(demo):
    """A machine on which a multiply-add takes 1 ns, and a pass 1 s."""
    rows, blocks = [[5, 6, 7, 8, 9]] * 6, block_costs(demo)
    shared = passes.layout(demo, rows, 5)
    n, width = shared.batches[0].ids.shape
    now, ticks = [0.0], iter(range(10**9))

    def clock():
        next(ticks)
        return now[0]

    run = passes.Steered.run

    def slow(self, batch):
        now[0] += 1 + 1e-9 * padded_macs(blocks, shared.together * n, width, shared.n_prefix, self.clean.layer, 6)
        return run(self, batch)

    passes.Steered.run = slow
    try:
        found = time_passes(demo, rows, shared, 6, blocks, budget=100.0, clock=clock)
    finally:
        passes.Steered.run = run
    assert found.per_mac == pytest.approx(1e-9, rel=1e-3) and found.per_pass == pytest.approx(1.0, rel=1e-3)
    assert [source for source, _, _ in found.probed] == [6, 5, 1]


def test_a_line_has_no_negative_parts():
    assert _line([(1.0, 3.0), (2.0, 5.0)]) == pytest.approx((2.0, 1.0))
    assert _line([(1.0, 1.0), (3.0, 9.0)])[1] == 0.0  # noise: a pass cannot take less than nothing
    assert _line([(1.0, 2.0), (2.0, 1.0)])[0] > 0


@pytest.mark.parametrize(("name", "n_weights"), [("llama-8b", 8_030_261_248), ("qwen-72b", 72_706_203_648)])
def test_large_shapes_are_planned_without_weights(prompts, tmp_path, name, n_weights):
    config = PAPER[name]
    config.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(demo_path()).save_pretrained(tmp_path)
    model = load_on_paper(tmp_path, dtype="bfloat16")
    options = CosmicOptions(n_train=20, n_val=20, evaluation_layers=(20,))
    plan = plan_selection(model, prompts, options)
    memory = plan.forecast.memory
    assert memory.weights == 2 * n_weights
    # One layer's stream of one side, with that of one batch twice, and clean logits of both sides in float32, by hand.
    token = config.hidden_size * 2
    assert 20 * 9 * token < memory.stream < 2 * 20 * 30 * token
    assert memory.readouts == 40 * (config.vocab_size * 4 + config.hidden_size * (2 + 8))
    larger = plan_selection(model, prompts, replace(options, n_val=40)).forecast.memory
    assert larger.stream > memory.stream and larger.products == 4 * memory.products
    assert (
        plan_selection(model, prompts, options, batch_size=256).forecast.memory.activations > 1.2 * memory.activations
    )
    with pytest.raises(CosmicError, match="probe: a model without weights"):
        plan_selection(model, prompts, options, probe=True)


def test_a_forecast_is_saved_with_its_plan(demo, prompts, tmp_path):
    plan = plan_selection(demo, prompts, CosmicOptions(n_train=8, n_val=8))
    timed = replace(plan, forecast=replace(plan.forecast, timing=PassTiming(1e-9, 0.1, 0.0, ((0, 5, 0.1),))))
    timed.save(tmp_path / "plan")
    found = Plan.load(tmp_path / "plan")
    assert isinstance(found.forecast, Forecast) and isinstance(found.forecast.memory, MemoryUse)
    assert found.forecast.seconds == timed.forecast.seconds and found.forecast.stages.equals(timed.forecast.stages)


def test_plans_on_paper_by_command(command, tmp_path):
    folder = tmp_path / "model"
    LlamaConfig(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        pad_token_id=0,
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(demo_path()).save_pretrained(folder)
    code, text, _ = command("plan", folder, "--n-val", "8", "--n-train", "8")
    assert code == 0 and "Planned on paper" in text and "peak memory" in text and "s on this machine" not in text
    code, _, error = command("plan", folder, "--n-val", "8", "--workers", "2")
    assert code == 2 and error.startswith("Error: workers: nothing is known of time")
    code, text, _ = command("plan", "--n-val", "8", "--n-train", "8", "--workers", "2", "--device", "cpu")
    assert code == 0 and "Planned on paper" not in text and "With 2 workers about" in text
    code, _, error = command("plan", "--workers", "0")
    assert code == 2 and "workers" in error
    code, text, _ = command("plan", "--n-val", "8", "--no-weights")
    assert code == 0 and "Planned on paper" in text


def test_a_model_on_paper_computes_nothing(prompts):
    model = load_on_paper("demo")
    with pytest.raises((CosmicError, NotImplementedError, RuntimeError)):
        select_cosmic(model, prompts, CosmicOptions(n_train=2, n_val=2))
    assert all(param.device == torch.device("meta") for param in model.original_model.parameters())
    with pytest.raises(CosmicError, match="dtype: unknown name"):
        load_on_paper("demo", dtype="int3")
    with pytest.raises(CosmicError, match=r"model: no file or directory"):
        load_on_paper("no/such/model")
