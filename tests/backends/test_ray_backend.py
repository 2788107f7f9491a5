import json
import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import ray
import torch
import work
from ray import cloudpickle

from cosmic_tl import (
    CosmicOptions,
    RefusalTokenOptions,
    RunSettings,
    complete,
    load_model,
    measure_effects,
    run,
    select_cosmic,
    steering,
)
from cosmic_tl._util.spreading import Piece, contiguous, spread_over
from cosmic_tl._util.versions import versions
from cosmic_tl.activations import class_means
from cosmic_tl.backends import RayBackend, shared_by
from cosmic_tl.backends.worker import Worker
from cosmic_tl.errors import CosmicError
from cosmic_tl.experiments.conditions import Condition
from cosmic_tl.model.copies import as_loaded
from cosmic_tl.runs.logs import ScoreLog
from cosmic_tl.runs.piece_table import PIECES, read_pieces
from cosmic_tl.runs.pieces import RunPieces
from cosmic_tl.studies import PromptSet, SettingsEntry, Study, StudyModel, run_study

# Two batches of training prompts per side, and scores and conditions for several pieces.
OPTIONS = CosmicOptions(n_train=40, n_val=4, n_positions=2, max_kl=10.0)
SETTINGS = RunSettings(OPTIONS, n_test=2, max_new_tokens=2, n_placebos=1)


@pytest.fixture(scope="module")
def backend():
    cloudpickle.register_pickle_by_value(work)  # workers cannot import it
    before = torch.get_num_threads()
    with RayBackend("demo", workers=2, device="cpu", cpus_per_worker=1) as found:
        yield found
    torch.set_num_threads(before)


@pytest.fixture
def light(backend):
    """Workers without a model, in the same Ray: for what does not depend on their work."""
    found = RayBackend("demo", workers=2)
    found._new = partial(ray.remote(work.Light).options(num_cpus=0).remote, versions())
    found._start()
    found._start()
    yield found
    found.close()


@pytest.fixture(scope="module")
def alone(demo, prompts, tmp_path_factory):
    """The files of one process with one thread, as each worker has."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("alone") / "run"
    run(demo, prompts, out, SETTINGS)
    return contents(out)


def contents(out):
    """Every file of a run but the report, without the seconds that it took."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name not in ("report.html", "lock"):
            found[str(path.relative_to(out))] = path.read_bytes()
    summary = json.loads(found["summary.json"])
    del summary["seconds"]
    return {**found, "summary.json": summary}


def test_workers_leave_the_files_of_one_process(backend, demo, prompts, alone, tmp_path):
    run(demo, prompts, tmp_path / "run", SETTINGS, backend=backend)
    assert contents(tmp_path / "run") == alone


def test_a_stopped_run_goes_on_with_workers_and_with_what_they_had_done(
    backend, demo, prompts, alone, tmp_path, monkeypatch
):
    plain, left = ScoreLog.__setitem__, [10]

    def stop(self, key, value):
        plain(self, key, value)
        left[0] -= value == value  # where there is a direction
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(ScoreLog, "__setitem__", stop)
    with pytest.raises(KeyboardInterrupt):
        run(demo, prompts, tmp_path / "run", SETTINGS, backend=backend)
    found = read_pieces(tmp_path / "run")
    assert {"activations", "scores"} <= set(found.stage) and set(found.state) == {"done", "running", "waiting"}
    monkeypatch.undo()
    # As if it had been stopped before the means were written: batches are kept by themselves.
    (tmp_path / "run" / "resume" / "activations.safetensors").unlink()
    kept = sorted((tmp_path / "run" / "resume" / PIECES).glob("*.safetensors"))
    assert len(kept) == 4
    kept[0].write_bytes(kept[0].read_bytes()[:-1] + b"!")  # damage is noticed, and the batch made again
    kept[1].unlink()
    made, whole = [], RayBackend.map

    def noted(self, stage, function, shared, pieces, on_change):
        made.extend([stage] * len(pieces))
        return whole(self, stage, function, shared, pieces, on_change)

    monkeypatch.setattr(RayBackend, "map", noted)
    run(demo, prompts, tmp_path / "run", SETTINGS, backend=backend)
    assert made.count("activations") == 2
    assert contents(tmp_path / "run") == alone


def test_workers_share_the_runs_of_a_study(backend, prompts, alone, tmp_path, monkeypatch):
    selection = {"n_train": 40, "n_val": 4, "n_positions": 2, "max_kl": 10.0}
    values = {"selection": selection, "n_test": 2, "max_new_tokens": 2, "n_placebos": 1}
    study = Study(
        "one",
        (StudyModel("demo", device="cpu"),),
        (PromptSet("demo", {"source": "demo"}),),
        (SettingsEntry("few", values),),
    )
    made, whole = [], RayBackend.map

    def noted(self, stage, *args):
        made.append(stage)
        return whole(self, stage, *args)

    monkeypatch.setattr(RayBackend, "map", noted)
    run_study(study, tmp_path / "study", backend=lambda model: nullcontext(backend))
    assert {"activations", "scores", "completions"} == set(made)
    (folder,) = (tmp_path / "study" / "runs").iterdir()
    assert contents(folder) == alone


def test_refusal_tokens_are_scored_by_workers_alike(backend, demo, prompts, tmp_path):
    torch.set_num_threads(1)
    options = RefusalTokenOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0, min_induce=-50.0)
    settings = replace(SETTINGS, selection=options)
    run(demo, prompts, tmp_path / "alone", settings)
    run(demo, prompts, tmp_path / "shared", settings, backend=backend)
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_a_selection_alone_can_be_shared(backend, demo, prompts):
    with shared_by(backend, demo):
        shared = select_cosmic(demo, prompts, OPTIONS)
        means = class_means(demo, prompts, seeds=[0])
    assert shared.table.equals(select_cosmic(demo, prompts, OPTIONS).table)
    plain = class_means(demo, prompts, seeds=[0])
    for one, other in zip(means, plain, strict=True):
        assert torch.equal(one.resid_pre, other.resid_pre) and torch.equal(one.splits[0], other.splits[0])


def test_batches_of_a_condition_are_shared_and_kept(backend, demo, prompts, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    conditions = [Condition("baseline", side, ()) for side in ("positive", "negative")]
    how = {"n": 5, "conditions": conditions, "batch_size": 2, "max_new_tokens": 12, "temperature": 1.0, "seed": 3}
    expected = measure_effects(demo, prompts, **how).completions
    backend.model = as_loaded(demo)

    def stop(rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), spread_over(RunPieces(backend, tmp_path)):
        measure_effects(demo, prompts, on_rows=stop, **how)
    done = (found := read_pieces(tmp_path))[found.state == "done"]
    assert found.piece[0] == "positive, baseline, batch 1 of 3" and len(found) == 6 and len(done) >= 2
    kept = len(list((tmp_path / "resume" / PIECES).glob("*.safetensors")))
    assert kept >= 3  # the whole of one condition; the last may be kept and not yet said to be done
    made, whole = [], RayBackend.map

    def noted(self, stage, function, shared, pieces, on_change):
        made.extend(pieces)
        return whole(self, stage, function, shared, pieces, on_change)

    monkeypatch.setattr(RayBackend, "map", noted)
    with spread_over(RunPieces(backend, tmp_path)):
        again = measure_effects(demo, prompts, **how).completions
    assert len(made) == 6 - kept
    assert again.equals(expected) and expected.completion.nunique() > 5


def test_answers_are_shared_by_batches_wherever_they_are_asked_for(backend, demo, prompts, monkeypatch):
    torch.set_num_threads(1)
    asked, how = prompts.sides("test", 5)[0], {"batch_size": 2, "max_new_tokens": 12, "temperature": 1.0}
    edit = select_cosmic(demo, prompts, OPTIONS).removal()
    expected = complete(demo, asked, edit, **how)
    made, whole = [], RayBackend.map

    def noted(self, stage, *args):
        made.append(stage)
        return whole(self, stage, *args)

    monkeypatch.setattr(RayBackend, "map", noted)
    with shared_by(backend, demo):
        assert complete(demo, asked, edit, **how) == expected
    assert expected != complete(demo, asked, **how)
    assert made == ["completions"]


def test_candidates_that_cost_nothing_are_left_to_this_process(backend, demo, prompts):
    torch.set_num_threads(1)
    options = replace(OPTIONS, evaluation_layers=(3,), n_resamples=0)
    known = {}
    expected = select_cosmic(demo, prompts, options, scores=known)
    # As if it had been stopped before the last piece, of candidates above the layer that is read.
    left = {key: value for key, value in known.items() if key[0] <= 3 or key[2] != "s_refuse"}
    assert len(known) - len(left) >= 2
    with shared_by(backend, demo):
        found = select_cosmic(demo, prompts, options, scores=left)
    assert found.table.equals(expected.table) and left == known


def test_what_workers_cannot_know_is_done_here(backend, demo, prompts):
    torch.set_num_threads(1)
    chosen = select_cosmic(demo, prompts, OPTIONS)
    other = load_model("demo-weak", device="cpu")
    with steering(demo, chosen.removal()):
        expected = class_means(demo, prompts)[0].resid_pre, class_means(other, prompts)[0].resid_pre
    with shared_by(backend, demo), steering(demo, chosen.removal()):
        found = class_means(demo, prompts)[0].resid_pre, class_means(other, prompts)[0].resid_pre
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(found[0], class_means(demo, prompts)[0].resid_pre)


def test_another_chat_template_is_another_model(backend, prompts, tmp_path):
    other = load_model("demo", device="cpu")
    other.tokenizer.chat_template = other.tokenizer.chat_template + " "
    with pytest.raises(CosmicError, match=r"workers: they loaded .* chat template"):
        run(other, prompts, tmp_path / "run", SETTINGS, backend=backend)
    backend.model = ()


def test_a_piece_of_a_worker_that_dies_is_done_by_another(backend, tmp_path):
    changes = []
    pieces = [Piece(str(number), (number,)) for number in range(6)]
    found = backend.map("tests", work.die_once, (str(tmp_path),), pieces, lambda *change: changes.append(change[:2]))
    assert sorted(number for _, (number, _) in found) == [0, 1, 2, 3, 4, 5]
    assert changes.count((2, "running")) == 2 and (2, "waiting") in changes
    assert all(changes.count((number, "running")) == 1 for number in (0, 1, 3, 4, 5))


def test_an_idle_worker_that_dies_is_replaced(light, tmp_path):
    pieces = [Piece(str(number), (number,)) for number in range(4)]
    (tmp_path / "2").touch()
    processes = {pid for _, (_, pid) in light.map("tests", work.die_once, (str(tmp_path),), pieces)}
    for process in processes:
        os.kill(process, signal.SIGKILL)
    assert sorted(light.map("tests", work.tenfold, (), pieces)) == [(number, 10 * number) for number in range(4)]


def test_a_piece_that_kills_every_worker_is_named(light):
    with pytest.raises(CosmicError, match="workers: tests, the bad one was lost 3 times with its worker"):
        list(light.map("tests", work.die, (), [Piece("the bad one", ())]))


def test_a_worker_that_has_no_room_is_told_of(light, monkeypatch, capsys):
    pieces = [Piece(str(number), (number,)) for number in range(12)]
    while light._starting:
        list(light.map("tests", work.wait, (), pieces))
    monkeypatch.setattr("cosmic_tl.backends.ray_backend.PATIENCE", 1.0)
    light._new = partial(ray.remote(work.Light).options(num_cpus=1000).remote, versions())
    light._start()
    assert len(list(light.map("tests", work.wait, (), pieces))) == 12
    assert capsys.readouterr().err.count("1 of 2 workers are not there yet") == 1


def test_other_versions_are_refused(light):
    light._new = partial(ray.remote(work.Light).options(num_cpus=0).remote, {**versions(), "torch": "1.0"})
    for worker in light._workers[:]:
        light._gone(worker)
    light._starting.clear()
    light._start()
    with pytest.raises(CosmicError, match=r"workers: somewhere:\d+ has torch 1.0, and this process \d"):
        list(light.map("tests", work.tenfold, (), [Piece("a", (2,))]))


def test_a_worker_that_cannot_load_says_where():
    with pytest.raises(
        CosmicError, match=r"workers: the one on '.*' cannot load the model \(model: no file or directory"
    ):
        Worker({"name_or_path": "./nowhere"}, threads=1).ready()


def test_a_model_for_which_there_is_no_memory_is_an_error(backend, monkeypatch):
    starved = RayBackend("demo", workers=1)
    monkeypatch.setattr(starved, "_new", ray.remote(work.Starved).options(num_cpus=0).remote)
    starved._start()
    with pytest.raises(CosmicError, match="workers: all died while they loaded the model"):
        list(starved.map("tests", work.tenfold, (), [Piece("a", (1,))]))


def test_what_a_function_raises_comes_through(light):
    with pytest.raises(CosmicError, match=r"^number: found 3$"):
        list(light.map("tests", work.refuse, (), [Piece("a", (3,))]))
    with pytest.raises(ZeroDivisionError, match="by nought"):
        list(light.map("tests", work.fail, (), [Piece("a", (3,))]))
    assert list(light.map("tests", work.tenfold, (), [Piece("a", (2,))])) == [(0, 20)]  # and workers go on


def test_another_model_is_refused(prompts, tmp_path, backend):
    other = load_model("demo-weak", device="cpu")
    with pytest.raises(CosmicError, match=r"workers: they loaded .* with other weights"):
        run(other, prompts, tmp_path / "run", SETTINGS, backend=backend)
    half = load_model("demo", device="cpu", dtype="bfloat16")
    with pytest.raises(CosmicError, match=r"another number format"), shared_by(backend, half):
        select_cosmic(half, prompts, OPTIONS)
    backend.model = ()


def test_more_than_there_is_is_refused():
    backend = RayBackend("demo", workers=1, cpus_per_worker=100_000)
    with pytest.raises(CosmicError, match="workers: Ray has room for 0 of 1 with 100000 CPUs each"), backend:
        pass


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "workers: must be at least 1, found 0"),
        ({"gpus_per_worker": -1.0}, "gpus_per_worker: expected a number from 0 on, found -1.0"),
        ({"memory_per_worker": float("nan")}, "memory_per_worker: expected a number from 0 on, found nan"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, said):
    with pytest.raises(CosmicError, match=said):
        RayBackend("demo", **options)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("cosmic_tl.backends.ray_backend.find_spec", lambda name: None)
    with pytest.raises(CosmicError, match=r"pip install 'cosmic_tl\[ray\]'"):
        RayBackend("demo")


def test_a_backend_that_is_not_running_is_refused(demo, prompts, tmp_path):
    with pytest.raises(CosmicError, match="backend: its workers are not running"):
        run(demo, prompts, tmp_path / "run", SETTINGS, backend=RayBackend("demo"))


@pytest.mark.parametrize("n", [1, 2, 3, 8, 50])
def test_runs_of_neighbours_cover_everything_once(n):
    costs = [float(cost) for cost in torch.randint(1, 20, (30,), generator=torch.Generator().manual_seed(n))]
    runs = contiguous(costs, n)
    assert [i for some in runs for i in some] == list(range(30))
    assert len(runs) <= n
    assert max(sum(costs[i] for i in some) for some in runs) <= sum(costs) / n + max(costs)
    assert len(contiguous([*costs, 0.0, 0.0], n)) <= n
