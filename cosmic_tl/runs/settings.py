"""A run's settings."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import ACTIVATIONS, SCORES
from cosmic_tl.directions.names import DIM
from cosmic_tl.errors import CosmicError, check_count, check_phrases, check_whole_number
from cosmic_tl.generation.options import Sampling
from cosmic_tl.model.options import ChatFormat
from cosmic_tl.selection.options import PLACEBOS, CosmicOptions, RefusalTokenOptions

if TYPE_CHECKING:
    from cosmic_tl.judges.substring import SubstringJudge

STAGES = (ACTIVATIONS, SCORES, "strengths of the placebos", "completions", "report")
"""What a run does, in order."""


@checked
@dataclass(frozen=True)
class RunSettings:
    """Everything that decides a run's results besides model and prompts."""

    selection: CosmicOptions | RefusalTokenOptions = field(default_factory=CosmicOptions)
    """How the direction is chosen: by activations (COSMIC), or by the first tokens of answers (refusal tokens)."""
    chat: ChatFormat = field(default_factory=ChatFormat)
    """How instructions become prompts."""
    n_test: int = 100
    """Test prompts per side."""
    max_new_tokens: int = 64
    """Maximum number of new tokens per completion."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy decoding."""
    seed: int = 0
    """Random seed of sampling and of the first placebo; further placebos count up from it."""
    batch_size: int | None = None
    """Rows per forward pass; results do not depend on it, but for sampled completions. By default as many as fit into memory,
    outside the selection at most 32, and 128 for completions."""
    phrases: tuple[str, ...] | None = None
    """Text that shows the concept when an answer contains it, in upper or lower case. By default phrases of refusal."""
    sampling: Sampling = field(default_factory=Sampling)
    """Top-k, top-p and repetition penalty. By default none, whatever the checkpoint's `generation_config` says."""
    n_placebos: int = PLACEBOS
    """Seeds per kind of placebo (one for random removal, which does nothing by construction). Each seed needs completions: 5
    seeds take 30 sets of them, 1 seed takes 10."""
    null: int = 0
    """Null directions of each kind that a choice on half of the prompts is tested against on the other half (`measure_null`);
    0 for none. It takes longer than the selection."""
    causal: int = 0
    """Test prompts per side on which a causal map is made: where what each layer writes along the direction makes the model do it
    (`causal_map`); 0 for none."""

    def __post_init__(self) -> None:
        # Checked before anything is loaded.
        if self.phrases is not None:
            check_phrases(self.phrases)
        self.sampling.check(self.temperature)
        for name in ("n_test", "max_new_tokens", "n_placebos", "batch_size"):
            check_count(name, getattr(self, name))
        for name in ("null", "causal"):
            check_whole_number(name, getattr(self, name))
        if self.causal:
            check_count("causal", self.causal)
        if self.null:
            check_count("null", self.null)
            halving = isinstance(self.selection, CosmicOptions) and self.selection.successive_halving
            if self.selection.cell is not None or halving:
                raise CosmicError(
                    f"null: found {self.null}, and it tests a choice among all candidates; leave out cell and successive halving"
                )
            if self.selection.directions != (DIM,):
                raise CosmicError(
                    f"null: found {self.null}, and it is made of differences in means; leave it out, or use {DIM} alone"
                )

    @property
    def seeds(self) -> range:
        """Of the placebos.

        Example:
            >>> list(RunSettings(seed=3, n_placebos=2).seeds)
            [3, 4]
        """
        return range(self.seed, self.seed + self.n_placebos)

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON holds them; the batch size only if completions are sampled, since it changes nothing else.

        Example:
            >>> RunSettings.from_json(RunSettings(n_test=8).to_json()) == RunSettings(n_test=8)
            True
        """
        asked = asdict(self)
        if not self.temperature:
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
            cosmic_tl.errors.CosmicError: settings: expected causal, chat, ..., found n_test; use those of a run ...
        """
        names = {f.name for f in fields(cls)} - {"batch_size"}
        if isinstance(found, Mapping) and found.get("temperature") and "batch_size" in found:
            names |= {"batch_size"}
        values = _named("settings", found, names)
        by_tokens = isinstance(found["selection"], Mapping) and "min_induce" in found["selection"]
        kind = RefusalTokenOptions if by_tokens else CosmicOptions
        for name, group in (("selection", kind), ("chat", ChatFormat), ("sampling", Sampling)):
            values[name] = group(**_named(f"settings.{name}", found[name], {f.name for f in fields(group)}))
        return cls(**values)

    @property
    def judge(self) -> "SubstringJudge":
        """Finds the phrases.

        Example:
            >>> [found.verdict for found in RunSettings(phrases=("ahoy",)).judge(["hi"], ["Ahoy!"])]
            ['refusal']
        """
        from cosmic_tl.judges.substring import SubstringJudge  # imports torch, which these settings do without

        return SubstringJudge() if self.phrases is None else SubstringJudge(self.phrases)


def _named(where: str, found: Any, names: set[str]) -> dict[str, Any]:
    """The values of some settings, of which none may be missing, and none further."""
    if not isinstance(found, Mapping) or set(found) != names:
        given = ", ".join(sorted(map(str, found))) if isinstance(found, Mapping) else type(found).__name__
        expected = ", ".join(sorted(names))
        raise CosmicError(f"{where}: expected {expected}, found {given}; use those of a run of this version")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
