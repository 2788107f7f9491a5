"""Share work outside of a run."""

from collections.abc import Iterator
from contextlib import contextmanager

from cosmic_tl._util.border import checked
from cosmic_tl._util.spreading import spread_over
from cosmic_tl.backends.ray_backend import RayBackend
from cosmic_tl.model.copies import as_loaded
from cosmic_tl.model.load import TransformerBridge


@checked
@contextmanager
def shared_by(backend: RayBackend, model: TransformerBridge) -> Iterator[None]:
    """Let a backend's workers take part in what a model is asked for: means, score passes and completions.

    Not while `steering` is around it, since workers know nothing of that, and not in what another model is asked for.

    Args:
        backend: Its workers, which are running.
        model: The model of this process, which workers have to have too.

    Raises:
        CosmicError: At the first use, if they have another one.

    Example:
        >>> from cosmic_tl import load_model
        >>> backend = RayBackend("demo", workers=2)
        >>> with shared_by(backend, load_model("demo", device="cpu")):  # and `with backend:` around it
        ...     pass
    """
    backend.model = as_loaded(model)
    with spread_over(backend):
        yield
