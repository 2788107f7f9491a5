"""Options of the command line alone: which model, which prompts, which finished run."""

import os
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cosmic_tl._util.files import check_resume, settings_file
from cosmic_tl._util.progress import LOADING, stage
from cosmic_tl.cli.derive import Only
from cosmic_tl.errors import CosmicError, check_count, check_whole_number
from cosmic_tl.model.paths import check_model_path, is_adapter

if TYPE_CHECKING:
    from cosmic_tl.backends.ray_backend import RayBackend
    from cosmic_tl.data.contrast_set import ContrastSet
    from cosmic_tl.directions.direction import Direction
    from cosmic_tl.model.load import TransformerBridge
    from cosmic_tl.runs.result import Run
    from cosmic_tl.runs.settings import RunSettings

GENERATION = Only(("max_new_tokens", "temperature", "seed", "sampling"))
"""The settings of a run that commands need which only generate."""
TESTING = Only(("n_test", "batch_size", *GENERATION))
"""Those that commands need which choose directions and test them."""


def generation(settings: "RunSettings") -> dict[str, Any]:
    """The settings that are arguments of everything that generates."""
    # In the order of the fields: that of a set changes from process to process, and files with it.
    return {one.name: getattr(settings, one.name) for one in fields(settings) if one.name in GENERATION}


def check_paths(csv: Path | None = None, resume: Path | None = None, **files: Path | None) -> None:
    """Files that are read have to be there, and the folder of a table that is written: hours may pass before.

    Example:
        >>> check_paths(texts=Path("nowhere.txt"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: texts: no file 'nowhere.txt'; check the path
    """
    for name, path in files.items():
        if path is not None and not path.is_file():
            raise CosmicError(f"{name}: no file {str(path)!r}; check the path")
    if resume is not None:
        check_resume(resume)
    if csv is not None and not csv.parent.is_dir():
        raise CosmicError(f"csv: no folder {str(csv.parent)!r}; make it first")
    if csv is not None and csv.is_dir():
        raise CosmicError(f"csv: {str(csv)!r} is a folder; give a file")


def read_documents(texts: Path | None) -> list[str] | None:
    """The lines of a file of plain text, one document per line; None without a file."""
    from cosmic_tl.data.readers import numbered_lines

    return None if texts is None else [*numbered_lines(texts, "texts").values()]


def read_pairs(instructions: Path | None) -> list[tuple[str, str]] | None:
    """The pairs of a JSONL file with an instruction and a response per line; None without a file.

    Raises:
        CosmicError: If a line has no such texts.
    """
    from cosmic_tl.data.readers import read_rows

    if instructions is None:
        return None
    pairs = []
    for number, row in read_rows(instructions, "instructions").items():
        instruction, response = row.get("instruction"), row.get("response")
        if not (isinstance(instruction, str) and isinstance(response, str)):
            raise CosmicError(
                f"instructions: line {number} of {str(instructions)!r} needs an instruction and a response; add them"
            )
        pairs.append((instruction, response))
    return pairs


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Where and how a model is loaded."""

    device: str | None = None
    """Device to run on, such as cpu or cuda. By default TransformerLens chooses."""
    device_map: str | None = None
    """Spread the model over devices and memory: auto, balanced, …"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the weights."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""

    def boot(self, name: str, **more: Any) -> "TransformerBridge":
        """Load a model by its name or path.

        Args:
            name: As for `load_model`.
            **more: Further arguments of `load_model`, such as adapter.
        """
        stage(LOADING)
        from cosmic_tl.model.load import load_model

        return load_model(name, **self.how(), **more)

    def how(self) -> dict[str, Any]:
        """What `load_model` takes besides the name.

        Example:
            >>> LoadOptions(device="cpu").how()
            {'device': 'cpu', 'dtype': 'float32'}
        """
        options: dict[str, Any] = {"trust_remote_code": True} if self.trust_remote_code else {}
        if self.device_map is not None:
            options["device_map"] = self.device_map
        return {"device": self.device, "dtype": self.dtype, **options}


@dataclass(frozen=True, kw_only=True)
class ModelOptions(LoadOptions):
    """Which model."""

    model: str = field(default="demo", metadata={"positional": True})
    """Model: demo, demo-weak, a directory in Hugging Face format, a .gguf file, or a hub id."""

    def __post_init__(self) -> None:
        check_model_path(self.model)  # here, and not after seconds of imports

    def load(self) -> "TransformerBridge":
        """The model.

        Example:
            >>> ModelOptions(device="cpu").load().cfg.n_layers
            8
        """
        return self.boot(self.model)

    def load_for_plan(self, weights: bool) -> "tuple[TransformerBridge, bool]":
        """The model, and whether it is one on paper: because that is asked for, or since its directory has no weights.

        Args:
            weights: Whether to load them where there are any.

        Example:
            >>> ModelOptions(device="cpu").load_for_plan(weights=False)[1]
            True
        """
        from cosmic_tl.model.on_paper import lacks_weights, load_on_paper

        if weights and not lacks_weights(self.model):
            return self.load(), False
        stage(LOADING)
        return load_on_paper(self.model, dtype=self.dtype, trust_remote_code=self.trust_remote_code), True


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Whether other processes share the work."""

    workers: int = 0
    """Copies of the model that share extraction, scores and completions, a judge's too; 0 for this process alone. Takes the
    package ray. Results are the same, and a worker that dies is replaced."""
    ray: str | None = None
    """Address of a running Ray cluster: auto, host:port or ray://host:port. By default Ray is started on this machine."""
    cpus_per_worker: int | None = None
    """CPUs of each worker, which are also its threads. By default workers share all that Ray has."""
    gpus_per_worker: float | None = None
    """GPUs of each worker; less than 1 for a share of one. By default workers share all that Ray has."""
    memory_per_worker: float | None = None
    """Memory of each worker in GiB, which Ray then reserves. By default none is reserved."""

    def __post_init__(self) -> None:
        check_whole_number("workers", self.workers)
        if self.workers:
            check_count("workers", self.workers)
            return
        for name, value in asdict(self).items():
            if name != "workers" and value is not None:
                raise CosmicError(f"{name}: found {value} without workers; say how many, as in --workers 2")

    def backend(self, name: str, **how: Any) -> "RayBackend":
        """Workers with a model, to be started with `with`.

        Args:
            name: As for `load_model`.
            **how: Its other arguments.

        Example:
            >>> WorkerOptions(workers=2).backend("demo", device="cpu").count
            2
        """
        # Ray would print the deaths of workers among the results; a terminal hears of them as `track` shows progress.
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
        from cosmic_tl.backends.ray_backend import RayBackend

        asked = asdict(self)
        return RayBackend(name, address=asked.pop("ray"), **asked, **how)


@dataclass(frozen=True, kw_only=True)
class PairOptions(LoadOptions):
    """A model and an edit of it."""

    base: str = field(metadata={"positional": True})
    """The model before the edit: demo, demo-weak, a directory in Hugging Face format, a .gguf file, or a hub id."""
    edited: str = field(metadata={"positional": True})
    """The edited model: the same, or a folder with a PEFT adapter (such as a LoRA) of the base."""
    base_tokenizer: bool = False
    """Use the base's tokenizer and chat template for the edited model, whatever it comes with."""

    def __post_init__(self) -> None:
        check_model_path(self.base, "base")
        if not is_adapter(self.edited):
            check_model_path(self.edited, "edited")

    def load(self) -> "tuple[TransformerBridge, TransformerBridge]":
        """The base and the edited model, an adapter merged into it.

        Example:
            >>> [model.cfg.n_layers for model in PairOptions(base="demo", edited="demo-weak", device="cpu").load()]
            [8, 8]
        """
        base = self.boot(self.base)
        from cosmic_tl.model.same_shape import tokenizer_of

        more = {"tokenizer": tokenizer_of(base)} if self.base_tokenizer else {}
        if is_adapter(self.edited):
            return base, self.boot(self.base, adapter=self.edited, **more)
        return base, self.boot(self.edited, **more)


@dataclass(frozen=True)
class DataOptions:
    """Which contrast set."""

    prompts: str | None = None
    """Source with both sides: demo, a .json, .jsonl or .csv file, a directory of released splits, jailbreakbench or xstest.
    By default demo."""
    positive: str | None = None
    """Prompts that show the concept: a file, a named set (advbench, harmbench, …) or a Hugging Face data set."""
    negative: str | None = None
    """Prompts that do not: a file, a named set (alpaca, …) or a Hugging Face data set."""
    column: str | None = None
    """Column that holds the prompts, in tables and data sets. By default the first with a usual name."""
    hf_split: str = "train"
    """Split of a Hugging Face data set."""
    labels: str | None = None
    """What the two sides' prompts are called on pages and in figures, such as harmful,harmless. By default the source's own
    names."""
    keep_order: bool = False
    """Keep prompts in the order of their source instead of shuffling them."""
    seed: int = 0
    """Random seed of the shuffle of prompts."""

    def load(self) -> "ContrastSet":
        """The prompts.

        Example:
            >>> DataOptions().load().name
            'demo'
        """
        from cosmic_tl.data.prompts import load_prompts

        given = asdict(self)
        labels = given.pop("labels")
        return load_prompts(
            given.pop("prompts"),
            shuffle=not given.pop("keep_order"),
            labels=None if labels is None else [one.strip() for one in labels.split(",")],
            **given,
        )


@dataclass(frozen=True, kw_only=True)
class RunOptions(LoadOptions):
    """A finished run, with whose direction a command goes on."""

    directory: Path = field(metadata={"positional": True})
    """Directory that `cosmic-tl run` wrote."""
    model: str | None = None
    """Model, if it is not the one that the run names."""

    def __post_init__(self) -> None:
        settings_file(self.directory)
        if self.model is not None:
            check_model_path(self.model)

    @cached_property
    def run(self) -> "Run":
        """The run."""
        from cosmic_tl.runs.result import Run

        return Run.load(self.directory)

    def load(self) -> "tuple[TransformerBridge, Direction]":
        """The model and the direction."""
        direction = self.run.selection.direction
        bridge = self.boot(self.model or self.run.identity["model"])
        direction.check(bridge)
        return bridge, direction
