"""A run's settings."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from cosmic_tl.errors import CosmicError
from cosmic_tl.generation.sampling import Sampling
from cosmic_tl.judges.substring import SubstringJudge
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.selection.options import PLACEBOS, CosmicOptions, RefusalTokenOptions


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides a run's results besides model and prompts."""

    selection: CosmicOptions | RefusalTokenOptions = field(default_factory=CosmicOptions)
    """How the direction is chosen: by COSMIC, or by refusal tokens."""
    chat: ChatFormat = field(default_factory=ChatFormat)
    n_test: int = 100
    """Test prompts per side."""
    max_new_tokens: int = 64
    temperature: float = 0.0
    """0 is greedy."""
    seed: int = 0
    """Of sampling and of the first placebo; the others count up from it."""
    batch_size: int | None = None
    """Rows a forward pass; changes no result. None: 32 prompts, and in the selection as many as memory allows."""
    phrases: tuple[str, ...] | None = None
    """What a completion has to contain to show the concept, in any case. None: the phrases of refusals."""
    sampling: Sampling = field(default_factory=Sampling)
    """Top-k, top-p and repetition penalty; by default none, whatever the checkpoint's `generation_config` says."""
    n_placebos: int = PLACEBOS
    """Seeds of each kind of placebo (of random removal, which does nothing by construction, one). Completions are made for
    each: with 5 there are 30 sets of them, with 1 there are 10."""

    def __post_init__(self) -> None:
        # Checked before anything is loaded.
        _ = self.judge
        self.sampling.check(self.temperature)
        if self.n_placebos < 1:
            raise CosmicError(f"n_placebos: must be at least 1, found {self.n_placebos}")

    @property
    def seeds(self) -> range:
        """Of the placebos.

        Example:
            >>> list(RunSettings(seed=3, n_placebos=2).seeds)
            [3, 4]
        """
        return range(self.seed, self.seed + self.n_placebos)

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON holds them, but for the batch size, which changes no result.

        Example:
            >>> RunSettings.from_json(RunSettings(n_test=8).to_json()) == RunSettings(n_test=8)
            True
        """
        asked = asdict(self)
        del asked["batch_size"]
        plain: dict[str, Any] = json.loads(json.dumps(asked, default=dict))
        return plain

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "RunSettings":
        """Settings from what `to_json` gave.

        Raises:
            CosmicError: If there are others among them, some are missing, or a value is none that they can have.

        Example:
            >>> RunSettings.from_json({"n_test": 8})
            Traceback (most recent call last):
            cosmic_tl.errors.CosmicError: settings: expected chat, max_new_tokens, ..., found n_test; use those of a run ...
        """
        names = {f.name for f in fields(cls)} - {"batch_size"}
        if set(found) != names:
            expected, given = (", ".join(sorted(some)) for some in (names, found))
            raise CosmicError(f"settings: expected {expected}, found {given}; use those of a run of this version")
        values = dict(found)
        chosen = {f.name for f in fields(RefusalTokenOptions)}
        kind = RefusalTokenOptions if set(found["selection"]) == chosen else CosmicOptions
        for name, group in (("selection", kind), ("chat", ChatFormat), ("sampling", Sampling)):
            values[name] = group(**{key: _hashable(value) for key, value in found[name].items()})
        return cls(**{key: _hashable(value) for key, value in values.items()})

    @property
    def judge(self) -> SubstringJudge:
        """Finds the phrases.

        Example:
            >>> [found.verdict for found in RunSettings(phrases=("ahoy",)).judge(["hi"], ["Ahoy!"])]
            ['refusal']
        """
        return SubstringJudge() if self.phrases is None else SubstringJudge(self.phrases)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
