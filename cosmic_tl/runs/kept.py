"""Scores that commands without a run of their own keep in a directory, so that a stopped one goes on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from cosmic_tl._util.files import RESUME, check_resume
from cosmic_tl._util.versions import versions
from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.model.batching import sizes_kept
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.runs.derived import digest, model_identity, prompts_digest
from cosmic_tl.runs.lock import locked
from cosmic_tl.runs.logs import ProductLog, ScoreLog, SizeLog
from cosmic_tl.selection.options import CosmicOptions
from cosmic_tl.selection.scores import Keep, Products, Scores


@contextmanager
def kept_scores(
    folder: Path | None, command: str, model: TransformerBridge, chat: ChatFormat | None = None
) -> Iterator[Keep | None]:
    """What is known of a command's selections, in files whose names tell what they depend on.

    Args:
        folder: The directory; made if needed. None keeps nothing.
        command: Its name, since commands keep different things.
        model: The model that is scored.
        chat: Formatting of the prompts.

    Yields:
        For prompts and options, the scores and products that are known; new ones are written as they come.

    Raises:
        CosmicError: If the directory holds a run or something else, or another process works in it.

    Example:
        >>> import tempfile
        >>> from cosmic_tl import load_model, load_prompts
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with kept_scores(Path(folder), "sensitivity", load_model("demo", device="cpu")) as keep:
        ...         scores, products = keep(load_prompts("demo"), CosmicOptions())
        >>> len(scores), len(products)
        (0, 0)
    """
    if folder is None:
        yield None
        return
    check_resume(folder)
    depends_on = {
        "command": command,
        **model_identity(model, chat),
        "chat": json.loads(json.dumps(asdict(chat or ChatFormat()), default=dict)),
        "versions": versions(),
    }

    def keep(prompts: ContrastSet, options: CosmicOptions) -> tuple[Scores, Products]:
        name = digest({**depends_on, "prompts": prompts_digest(prompts), "options": asdict(options)})
        where = folder / RESUME
        return ScoreLog(where / f"scores-{name}.jsonl"), ProductLog(where / f"products-{name}.jsonl")

    with locked(folder), sizes_kept(SizeLog(folder / RESUME / f"sizes-{digest(depends_on)}.jsonl")):
        yield keep
