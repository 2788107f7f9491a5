"""A suffix, how it was found, and its effect."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl._util.files import write_atomically
from cosmic_tl._util.results import Result
from cosmic_tl._util.versions import versions
from cosmic_tl.errors import CosmicError, check_texts
from cosmic_tl.judges.base import Verdict
from cosmic_tl.model.options import ChatFormat
from cosmic_tl.suffixes.options import SuffixOptions as SuffixOptions

FORMAT = "cosmic_tl/suffix/1"


@checked
@dataclass(frozen=True)
class Suffix(Result):
    """A text that keeps the model from refusing when put at the end of an instruction."""

    text: str
    """The text, with its leading space."""
    ids: tuple[int, ...]
    """Its tokens."""
    losses: tuple[float, ...]
    """The best candidate's loss at each step: negative log-likelihood of the targets, in nats per token, mean over
    prompts."""
    prompts: tuple[str, ...]
    """The prompts that it was found on."""
    targets: tuple[str, ...]
    """The beginning of a compliant answer to each prompt."""
    completions: tuple[str, ...]
    """The model's greedy answer to each prompt with the suffix."""
    verdicts: tuple[Verdict, ...]
    """Verdicts of `judge_refusal`, one per completion."""
    stopped: Literal["complied", "steps", "interrupted"] = "steps"
    """Why the search ended."""
    options: SuffixOptions = field(default_factory=SuffixOptions)
    chat: ChatFormat = field(default_factory=ChatFormat)
    model: str = ""
    """Name of the model, for people."""
    fingerprint: str = ""
    """`model_fingerprint` of the model."""
    versions: dict[str, str] = field(default_factory=versions)

    def append_to(self, prompts: Sequence[str]) -> list[str]:
        """Prompts with the suffix appended.

        Example:
            >>> Suffix(" x", (5,), (), (), (), (), ()).append_to(["Bake a pizza."])
            ['Bake a pizza. x']
        """
        check_texts("prompts", prompts)
        return [prompt + self.text for prompt in prompts]

    @property
    def table(self) -> pd.DataFrame:
        """One row per prompt: prompt, target, completion, verdict.

        Example:
            >>> Suffix(" x", (5,), (0.1,), ("Rob a clerk.",), ("Sure",), ("Sure!",), ("compliance",)).table.verdict[0]
            'compliance'
        """
        columns = ["prompt", "target", "completion", "verdict"]
        rows = zip(self.prompts, self.targets, self.completions, self.verdicts, strict=True)
        return pd.DataFrame(list(rows), columns=columns)

    def save(self, path: str | Path) -> None:
        """Write to a JSON file, completely or not at all.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Suffix(" x", (5,), (0.1,), (), (), (), ()).save(f"{folder}/s.json")
            ...     Suffix.load(f"{folder}/s.json").text
            ' x'
        """
        write_atomically(Path(path), self.to_json())

    def to_json(self) -> str:
        """The content of the file that `save` writes.

        Example:
            >>> json.loads(Suffix(" x", (5,), (0.1,), (), (), (), ()).to_json())["format"]
            'cosmic_tl/suffix/1'
        """
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def load(cls, path: str | Path) -> "Suffix":
        """Read a file that `save` wrote.

        Raises:
            CosmicError: If the file is missing or does not hold a suffix.

        Example:
            >>> Suffix.load("nowhere.json")
            Traceback (most recent call last):
            cosmic_tl.errors.CosmicError: suffix: no file 'nowhere.json'; give the path of a saved suffix
        """
        if not Path(path).is_file():
            raise CosmicError(f"suffix: no file {str(path)!r}; give the path of a saved suffix")
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
                raise CosmicError(f"suffix: {str(path)!r} does not have the format {FORMAT!r}; save it again")
            data |= {"options": SuffixOptions(**data["options"]), "chat": ChatFormat(**data["chat"])}
            lists = {f.name: tuple(data[f.name]) for f in fields(cls) if isinstance(data.get(f.name), list)}
            return cls(**(data | lists))
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise CosmicError(f"suffix: {str(path)!r} is not a saved suffix ({error}); save it again") from error

    @property
    def n_complied(self) -> int:
        """Prompts that the model complies with.

        Example:
            >>> Suffix(" x", (5,), (), ("Rob a clerk.",), ("Sure",), ("Sure!",), ("compliance",)).n_complied
            1
        """
        return self.verdicts.count("compliance")

    def __repr__(self) -> str:
        done = f"complies with {self.n_complied} of {len(self.prompts)} prompts after {len(self.losses)} steps"
        return f"Suffix({self.text!r}: {done})"

    def _lines(self) -> list[str]:
        return [repr(self)]
