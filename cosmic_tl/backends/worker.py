"""What a Ray actor does: it loads a copy of the model, and works on one piece after the other.

Whoever starts workers imports this first. What takes seconds to import waits for the worker, so that both do it at once.
"""

import os
import platform
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cosmic_tl._util.spreading import keeping
from cosmic_tl._util.versions import versions
from cosmic_tl.errors import CosmicError

if TYPE_CHECKING:
    from cosmic_tl.model.load import TransformerBridge


class Worker:
    """One copy of the model, in a process of its own.

    Args:
        load: Arguments of `load_model`.
        threads: How many it computes with.
    """

    def __init__(self, load: Mapping[str, Any], threads: int) -> None:
        self.load, self.threads = dict(load), threads
        self.model: TransformerBridge | None = None
        self.sizes: dict[tuple[str, int], int] = {}
        self.kept: dict[Any, Any] = {}

    def ready(self) -> tuple[tuple[str, ...], str, dict[str, str]]:
        """Load the model; say which one it is, where, and with which versions of the packages that results depend on.

        Raises:
            CosmicError: If it cannot be loaded there.

        Example:
            >>> Worker({"name_or_path": "demo", "device": "cpu"}, threads=1).ready()[0][1]
            'torch.float32'
        """
        from cosmic_tl.model.copies import as_loaded

        try:
            return as_loaded(self._loaded()), f"{platform.node()}:{os.getpid()}", versions()
        except CosmicError as error:
            raise CosmicError(
                f"workers: the one on {platform.node()!r} cannot load the model ({error}); every machine loads it by its name"
            ) from error

    def _loaded(self) -> "TransformerBridge":
        if self.model is None:
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
            import torch

            from cosmic_tl.model.load import load_model

            torch.set_num_threads(self.threads)
            self.model = load_model(**self.load)
        return self.model

    def work(self, function: Callable[..., Any], shared: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        """`function(model, *shared, *args)`. What such calls can leave to each other is kept.

        Example:
            >>> Worker({"name_or_path": "demo", "device": "cpu"}, threads=1).work(lambda model, n: 10 * n, (), (3,))
            30
        """
        from cosmic_tl.model.batching import sizes_kept

        with sizes_kept(self.sizes), keeping(self.kept):
            return function(self._loaded(), *shared, *args)
