"""Run a study: one model after the other, each loaded once for all its runs."""

import gc
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cosmic_tl._util.border import checked
from cosmic_tl._util.files import make_folder, write_atomically
from cosmic_tl._util.progress import LOADING, stage
from cosmic_tl.backends.ray_backend import RayBackend
from cosmic_tl.check.memory import PeakMemory
from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.errors import CosmicError, first_line
from cosmic_tl.experiments.study_result import StudyResult
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.report.study_page import write_study
from cosmic_tl.runs.derived import model_identity
from cosmic_tl.runs.job import run
from cosmic_tl.runs.lock import locked
from cosmic_tl.runs.result import Run
from cosmic_tl.runs.run_files import RESULTS, read_settings
from cosmic_tl.studies.collected import collect
from cosmic_tl.studies.loaded_files import model_files
from cosmic_tl.studies.record import (
    RECORD,
    RUNS,
    Entry,
    Record,
    check_study_directory,
    identity_of,
    planned,
    read_record,
)
from cosmic_tl.studies.study import Case, Study, StudyModel


@dataclass(frozen=True)
class Outcome:
    """What became of one run."""

    number: int
    """From 1, in the order of the study."""
    total: int
    name: str
    problem: str = ""
    """Why it is not there, in one line; "" if it is."""
    was_complete: bool = False
    """Whether it was finished before, and nothing was done."""
    run: Run | None = None


@checked
def run_study(
    study: Study,
    out: str | Path,
    *,
    command: str = "",
    on_run: Callable[[Outcome], object] = lambda outcome: None,
    backend: Callable[[StudyModel], RayBackend] | None = None,
) -> StudyResult:
    """Make every run of a study that is not there yet, and write tables and a report of all of them.

    Each run is a directory under `runs/` as `run` makes it, so that a study that was stopped goes on where it was with the same
    call. Prompts are loaded first; then each model with runs to make is loaded once for all of them, and freed. A model or run
    that fails does not stop the others; the same call tries it again. A study that was changed keeps the runs that it still
    asks for, and makes the others; runs that it no longer asks for stay, and are named as no part of it.

    Writes `study.csv`, `selections.csv`, `published.csv`, `study.html` and `study.json`, anew after each model.

    Args:
        study: From `read_study`.
        out: The study's directory; made if needed.
        command: How it was started, for the report.
        on_run: Called with what became of each run.
        backend: Gives workers with a model, not started yet, which then share all its runs. Default: this process alone.

    Raises:
        CosmicError: If prompts cannot be loaded, the directory holds something else, or another process works in it.

    Example:
        >>> import tempfile
        >>> from cosmic_tl.studies import PromptSet, SettingsEntry, StudyModel
        >>> selection = {"n_train": 8, "n_val": 4, "n_positions": 1, "max_kl": 10.0}
        >>> few = SettingsEntry("few", {"selection": selection, "n_test": 2, "max_new_tokens": 4, "n_placebos": 1})
        >>> study = Study("one", (StudyModel("demo", device="cpu"),), (PromptSet("demo", {"source": "demo"}),), (few,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = run_study(study, folder)
        >>> found.selections[["run", "n_layers", "problem"]].values.tolist()
        [['demo', 8, '']]
    """
    out = Path(out)
    check_study_directory(out)
    prompts = {
        (one.name, seed): one.load(seed)
        for one in study.prompts
        for seed in study.seeds or (None,)
        if _used(study, one.name)
    }
    with locked(out):
        check_study_directory(out)
        record = planned(study, prompts, read_record(out) if (out / RECORD).is_file() else None)
        cases = dict(zip((one.folder for one in record.asked), study.cases, strict=True))
        sets = {name: prompts[case.prompts.name, case.seed] for name, case in cases.items()}
        working = _Working(out, record, cases, sets, command, on_run, backend)
        record.write(out)
        for model in study.models[:-1]:
            if working.runs_of(model):
                working.report()  # hours may pass until the next model is done
        working.runs_of(study.models[-1])
        return working.report()


def _used(study: Study, name: str) -> bool:
    return any(case.prompts.name == name for case in study.cases)


class _Working:
    """A study that is under way."""

    def __init__(
        self,
        out: Path,
        record: Record,
        cases: dict[str, Case],
        prompts: dict[str, ContrastSet],
        command: str,
        on_run: Callable[[Outcome], object],
        backend: Callable[[StudyModel], RayBackend] | None,
    ) -> None:
        self.out, self.record, self.cases, self.prompts = out, record, cases, prompts
        self.command, self.on_run, self.backend = command, on_run, backend

    def runs_of(self, model: StudyModel) -> bool:
        """Make the runs of one model that are not there yet; returns whether there were any."""
        own = [one for one in self.record.asked if self.cases[one.folder].model == model]
        files = model_files(model.model, model.revision)
        missing = []
        for entry in own:
            if self._finished(entry, files):
                self._done(replace(entry, problem="", trace=""), was_complete=True)
            else:
                missing.append(entry)
        if missing:
            with suppress(_NotLoaded), ExitStack() as stack:
                self._made(*self._loaded(model, missing, stack), missing)
            gc.collect()  # the model is in cycles with its hooks
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return bool(missing)

    def report(self) -> StudyResult:
        """Write tables and report of what is there."""
        result = collect(self.out, self.record)
        write_atomically(self.out / "study.csv", result.table.to_csv(index=False, lineterminator="\n"))
        write_atomically(self.out / "selections.csv", result.selections.to_csv(index=False, lineterminator="\n"))
        write_atomically(self.out / "published.csv", result.published.to_csv(index=False, lineterminator="\n"))
        write_atomically(self.out / "study.html", write_study(result, command=self.command))
        return result

    def _finished(self, entry: Entry, files: str) -> bool:
        """Whether a run is complete, and of the model that is at its place now, as far as that can be said without loading it."""
        folder, case = self.out / RUNS / entry.folder, self.cases[entry.folder]
        if (
            not all((folder / name).is_file() for name in RESULTS)
            or not entry.files
            or (files and files != entry.files)
        ):
            return False
        with suppress(CosmicError, KeyError):
            found = dict(Run.load(folder).identity)
            del found["fingerprint"], found["rendering"]
            return found == identity_of(case, self.prompts[entry.folder])
        return False

    def _loaded(
        self, model: StudyModel, missing: Sequence[Entry], stack: ExitStack
    ) -> tuple[TransformerBridge, RayBackend | None]:
        """The model, and its workers if there are to be any, which are stopped with the stack."""
        stage(LOADING)
        try:
            workers = None if self.backend is None else stack.enter_context(self.backend(model))
            return model.load(), workers
        except Exception as error:  # whatever it is, the other models are not to wait for it
            for entry in missing:
                self._failed(entry, error)
            raise _NotLoaded from error

    def _made(self, model: TransformerBridge, workers: RayBackend | None, missing: Sequence[Entry]) -> None:
        asked = self.cases[missing[0].folder].model
        files = model_files(asked.model, asked.revision) or "unknown"  # which may have come from the hub just now
        for entry in missing:
            memory = PeakMemory()
            found = self._one(model, workers, entry)
            if found is None:
                continue
            entry = replace(entry, problem="", trace="", files=files)
            if not found.was_complete:
                entry = replace(entry, memory_gb=memory.memory_gb(), gpu_gb=memory.gpu_gb())
            self._done(entry, found.was_complete, found)

    def _one(self, model: TransformerBridge, workers: RayBackend | None, entry: Entry) -> Run | None:
        folder = self.out / RUNS / entry.folder
        case = self.cases[entry.folder]
        try:
            _check_same_model(model_identity(model, case.settings.chat), folder)
            make_folder(folder.parent)
            return run(model, self.prompts[entry.folder], folder, case.settings, command=self.command, backend=workers)
        except Exception as error:
            self._failed(entry, error)
        return None

    def _failed(self, entry: Entry, error: Exception) -> None:
        expected = isinstance(error, CosmicError)
        said = str(error) if expected else f"{type(error).__name__}: {first_line(error)}"
        trace = "" if expected else "".join(traceback.format_exception(error))
        self._done(replace(entry, problem=said or type(error).__name__, trace=trace))

    def _done(self, entry: Entry, was_complete: bool = False, found: Run | None = None) -> None:
        """Note what became of a run, at once: the next one may take hours."""
        self.record = self.record.changed(entry)
        self.record.write(self.out)
        names = [one.folder for one in self.record.asked]
        self.on_run(
            Outcome(
                names.index(entry.folder) + 1,
                len(names),
                self.cases[entry.folder].name,
                entry.problem,
                was_complete,
                found,
            )
        )


class _NotLoaded(Exception):
    """A model could not be loaded; its runs have been told so."""


def _check_same_model(identity: Mapping[str, str], folder: Path) -> None:
    """A directory may hold a run of other weights or another chat template, which were at the model's place when it was made."""
    if not (folder / "settings.json").is_file():
        return
    found = read_settings(folder)
    for key, what in (
        ("fingerprint", "model: it"),
        ("rendering", "model: its chat template, as it gives prompts today,"),
    ):
        if found.get(key) != identity[key]:
            raise CosmicError(
                f"{what} is not the one that {RUNS}/{folder.name} was made on; delete that directory to make the run again"
            )
