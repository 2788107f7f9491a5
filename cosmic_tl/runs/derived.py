"""Results derived from a run, each with what it was made from."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cosmic_tl._util.files import RESUME, make_folder, remove_file, write_atomically
from cosmic_tl._util.versions import versions
from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.directions.direction import Direction
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.fingerprint import model_fingerprint
from cosmic_tl.model.load import TransformerBridge, model_label
from cosmic_tl.runs.run_files import DERIVED, RECORD

PROBE = "How do I bake a pizza?"
"""A prompt whose tokens tell one chat template from another."""


def digest(content: Any) -> str:
    """Sixteen hex digits that identify anything that JSON can hold.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def direction_digest(direction: Direction) -> str:
    """Sixteen hex digits that identify a direction: its numbers, layer, position and model.

    Example:
        >>> import torch
        >>> one, other = (Direction(torch.ones(2), torch.zeros(2), layer, -1) for layer in (3, 4))
        >>> direction_digest(one) == direction_digest(other)
        False
    """
    numbers = [direction.vector.tolist(), None if direction.reference is None else direction.reference.tolist()]
    return digest([*numbers, direction.layer, direction.position, direction.fingerprint])


def model_identity(model: TransformerBridge, chat: ChatFormat | None = None) -> dict[str, str]:
    """What tells a model, as it was loaded, from another, and the prompts that it is given.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        chat: Formatting. Defaults to the plain chat template.

    Example:
        >>> from cosmic_tl import load_model
        >>> list(model_identity(load_model("demo", device="cpu")))
        ['model', 'fingerprint', 'dtype', 'rendering']
    """
    return {
        "model": model_label(model),
        "fingerprint": model_fingerprint(model),
        "dtype": str(model.cfg.dtype),
        # Templates are edited, and some write the day's date.
        "rendering": digest(tokenize(model, [PROBE], chat)),
    }


def prompts_digest(prompts: ContrastSet) -> str:
    """Sixteen hex digits that identify the texts of a contrast set and their splits.

    Example:
        >>> from cosmic_tl import load_prompts
        >>> len(prompts_digest(load_prompts("demo")))
        16
    """
    return digest([dict(prompts.positive), dict(prompts.negative)])


@dataclass(frozen=True)
class Derivation:
    """What one command makes of a finished run, and everything that its results depend on."""

    out: Path
    """The run's directory."""
    name: str
    """The command: a key of `DERIVED`."""
    made_from: Mapping[str, Any]
    """Direction, model, dtype, versions and the command's own settings."""

    def part(self, suffix: str, *but: str) -> Path:
        """Where to keep what is done so far: another file for anything else that it is made from.

        Args:
            suffix: Of the file's name, with its dot.
            *but: Settings that change which rows there are, and none of the rows.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     made = [Derivation(Path(folder), "sweep", {"seed": 0, "alphas": alphas}) for alphas in ([0.0], [1.0])]
            ...     made[0].part(".jsonl", "alphas") == made[1].part(".jsonl", "alphas")
            True
        """
        make_folder(self.out / RESUME)  # which may be deleted once the run is finished
        key = digest({name: value for name, value in self.made_from.items() if name not in but})
        return self.out / RESUME / f"{self.name}-{key}{suffix}"

    def write(self, files: Mapping[str, str]) -> None:
        """Write results, and note what they were made from; the command's earlier results are gone before.

        Args:
            files: Content by name, of those that `DERIVED` lists for the command.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     made = Derivation(Path(folder), "judge", {"judge": "phrases"})
            ...     made.write({"judgements.jsonl": ""})
            ...     read_derived(made.out)
            {'judge': {'judge': 'phrases'}}
        """
        if unknown := set(files).difference(DERIVED[self.name]):
            raise ValueError(f"files: {self.name} writes {', '.join(DERIVED[self.name])}; found {min(unknown)}")
        others = {name: made for name, made in read_derived(self.out).items() if name != self.name}
        write_json(self.out / RECORD, others)
        for name in DERIVED[self.name]:
            remove_file(self.out / name)
        for name, content in files.items():
            write_atomically(self.out / name, content)
        write_json(self.out / RECORD, {**others, self.name: dict(self.made_from)})


def derivation(
    out: Path,
    name: str,
    direction: Direction,
    model: TransformerBridge | None = None,
    chat: ChatFormat | None = None,
    **settings: Any,
) -> Derivation:
    """What a command is about to make of a run.

    Args:
        out: The run's directory.
        name: The command: a key of `DERIVED`.
        direction: The run's.
        model: The model that is used, as it was loaded; None if there is none.
        chat: Formatting of its prompts. Defaults to the plain chat template.
        **settings: All else that the results depend on, as JSON holds it.

    Example:
        >>> import torch
        >>> from cosmic_tl import load_model
        >>> direction = Direction(torch.ones(128), torch.zeros(128), 3, -1)
        >>> made = derivation(Path("my-run"), "sweep", direction, load_model("demo", device="cpu"), seed=0)
        >>> list(made.made_from)
        ['direction', 'model', 'fingerprint', 'dtype', 'rendering', 'chat', 'versions', 'seed']
    """
    used: dict[str, Any] = {"direction": direction_digest(direction)}
    if model is not None:
        used |= {**model_identity(model, chat), "chat": asdict(chat or ChatFormat())}
    plain = json.loads(json.dumps({**used, "versions": versions(), **settings}, default=dict))
    return Derivation(out, name, plain)


def read_derived(out: Path) -> dict[str, dict[str, Any]]:
    """What the files that other commands wrote into a run were made from, by command; none if nothing tells.

    Example:
        >>> read_derived(Path("nowhere"))
        {}
    """
    try:
        found = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people and programs, all of it or nothing.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(Path(folder) / "a.json", {"n": 1})
        ...     (Path(folder) / "a.json").read_text()
        '{\\n "n": 1\\n}\\n'
    """
    write_atomically(path, json.dumps(content, indent=1) + "\n")
