"""A finished run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl._util.files import read_lines
from cosmic_tl.data.contrast_set import SIDES, ContrastSet
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError
from cosmic_tl.experiments.causal_result import CausalMap
from cosmic_tl.experiments.conditions import terms_of
from cosmic_tl.experiments.effects import Effects
from cosmic_tl.experiments.layer_similarity import LayerSimilarity
from cosmic_tl.judges.substring import SubstringJudge
from cosmic_tl.model.fingerprint import check_origin
from cosmic_tl.model.load import TransformerBridge, load_model
from cosmic_tl.runs.directory import read_choice
from cosmic_tl.runs.run_files import CHOICE, RESULTS, read_settings
from cosmic_tl.runs.settings import RunSettings
from cosmic_tl.selection.result import Selection


@checked
@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: what it found, and its files."""

    selection: Selection
    effects: Effects
    similarity: LayerSimilarity
    summary: dict[str, Any]
    """As in `summary.json`."""
    out: Path
    """The directory."""
    settings: RunSettings
    identity: dict[str, Any]
    """As in `settings.json`: all that the results depend on."""
    causal: CausalMap | None = None
    """Where the direction acts, if the settings ask for it."""
    was_complete: bool = False
    """Whether `run` found it finished, and did nothing."""

    @property
    def direction(self) -> Direction:
        """The chosen direction."""
        return self.selection.direction

    @property
    def candidates(self) -> Candidates:
        """All candidate directions."""
        return self.selection.candidates

    def load_model(self, **options: Any) -> TransformerBridge:
        """The model that the run was made on, with the run's number format.

        Args:
            **options: As for `load_model`; `device="cpu"`, say.

        Raises:
            CosmicError: If it cannot be loaded, or is not the model that the run was made on.

        Example:
            >>> import tempfile
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, run
            >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
            >>> settings = RunSettings(options, n_test=1, max_new_tokens=4, n_placebos=1)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     _ = run(load_model("demo", device="cpu"), load_prompts("demo"), folder, settings)
            ...     found = Run.load(folder)
            >>> found.direction.check(found.load_model(device="cpu"))
            >>> found.candidates, len(found.judge.phrases) > 1
            (Candidates(difference-in-means, 8 layers × 1 positions, d_model 128), True)
        """
        settings = {"dtype": self.identity["dtype"].removeprefix("torch."), **options}
        model = load_model(self.identity["model"], **settings)
        check_origin(model, self.identity["fingerprint"], self.identity["model"], "run")
        return model

    @property
    def judge(self) -> SubstringJudge:
        """The judge of its completions, for more of them.

        Raises:
            CosmicError: If `run` was given a judge, which is not kept in the run's files.
        """
        if (name := self.identity.get("judge")) is not None:
            raise CosmicError(
                f"judge: the run's completions were judged by {name[:60]!r}, which its files do not hold; call the library's "
                "function with judge=…"
            )
        return self.settings.judge

    @classmethod
    def load(cls, out: str | Path) -> "Run":
        """Read a finished run; needs no model.

        Args:
            out: The directory that `run` (`cosmic-tl run`) wrote.

        Raises:
            CosmicError: If there is no finished run, or a file is damaged or belongs to another run.

        Example:
            >>> Run.load("nowhere")
            Traceback (most recent call last):
            cosmic_tl.errors.CosmicError: run: 'nowhere' holds no run; give a directory that `cosmic-tl run` wrote
        """
        out = Path(out)
        identity = read_settings(out)
        if missing := [name for name in RESULTS if not (out / name).is_file()]:
            raise CosmicError(f"run: {str(out)!r} is not finished (no {missing[0]}); finish it with `cosmic-tl run`")
        name = "settings.json"
        try:
            settings = RunSettings.from_json(identity["settings"])
            name = "summary.json"
            summary = json.loads((out / name).read_text(encoding="utf-8"))
            name = "completions.jsonl"
            rows = read_lines(out / name, dict)
            frame = pd.DataFrame(rows).assign(
                seed=pd.Series([row["seed"] for row in rows], dtype=object)
            )  # None: no NaN
            effects = Effects(frame, terms_of(settings.phrases, identity["prompts"]["labels"]), summary["generation"])
            _ = effects.table
            name = "direction.safetensors"
            direction = Direction.load(out / name)
            name = CHOICE
            selection, similarity, causal = read_choice(out, direction, identity)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CosmicError(f"run: {name} in {str(out)!r} is damaged ({said}); run again with --overwrite") from error
        return cls(selection, effects, similarity, summary, out, settings, identity, causal)

    @property
    def prompts(self) -> ContrastSet:
        """The test prompts that it completed, as a contrast set without the other splits.

        Example:
            >>> import tempfile
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, run
            >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     settings = RunSettings(options, n_test=2, max_new_tokens=4, n_placebos=1)
            ...     _ = run(load_model("demo", device="cpu"), load_prompts("demo"), folder, settings)
            ...     Run.load(folder).prompts
            ContrastSet('demo': train 0 + 0, val 0 + 0, test 2 + 2, harmful + harmless)
        """
        frame = self.effects.completions
        baseline = frame[frame.condition == "baseline"]
        positive, negative = ({"test": tuple(baseline.prompt[baseline.side == side])} for side in SIDES)
        about = self.identity["prompts"]
        labels = None if about["labels"] is None else (about["labels"][0], about["labels"][1])
        return ContrastSet(about["name"], positive, negative, labels=labels)

    def test_prompts(self, n: int | None = None) -> tuple[list[str], list[str]]:
        """The test prompts of the positive and the negative side, the first `n` of each (default: all).

        Example:
            >>> import tempfile
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, run
            >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     settings = RunSettings(options, n_test=2, max_new_tokens=4, n_placebos=1)
            ...     _ = run(load_model("demo", device="cpu"), load_prompts("demo"), folder, settings)
            ...     [len(side) for side in Run.load(folder).test_prompts(1)]
            [1, 1]
        """
        return self.prompts.sides("test", n)

    def __repr__(self) -> str:
        done = "it was complete already, and nothing was changed\n" if self.was_complete else ""
        return f"{self.selection!r}\n{self.effects!r}\n{done}report: {self.out / 'report.html'}"

    def _repr_html_(self) -> str:
        return self.selection._repr_html_() + self.effects._repr_html_()
