"""What a file of another tool holds once it is read: vectors, by our layer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from cosmic_tl.errors import CosmicError, first_line


@dataclass(frozen=True, eq=False)
class ForeignVectors:
    """The vectors of a file that another tool wrote.

    Our layer l is the input of block l. Most tools count outputs, and the output of block l − 1 is the input of block l: each
    reader converts what its format counts.
    """

    vectors: dict[int, Float[Tensor, " d_model"]]
    """By our layer, in ascending order, as long as the file has them; float32 or float64, on the CPU."""
    left_out: tuple[str, ...] = ()
    """What has no place here, such as the output of the last block."""
    method: str = ""
    """How they were made, as far as the file says."""
    model: str = ""
    """The model that they were made for, as far as the file says."""


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Say in one line that a file is missing, or is not what it should be, whatever its content makes a reader raise.

    Args:
        path: The file.
        what: What it should be, with an article.

    Raises:
        CosmicError: In place of any other exception.

    Example:
        >>> with reading(Path("pyproject.toml"), "a control vector"):
        ...     raise KeyError("direction.1")
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: file: 'pyproject.toml' is not a control vector ('direction.1'); export it again
    """
    if not path.is_file():
        raise CosmicError(f"file: no file {str(path)!r}; give the path of {what}")
    try:
        yield
    except CosmicError:
        raise
    except Exception as error:  # a foreign file can make its reader raise anything
        raise CosmicError(f"file: {str(path)!r} is not {what} ({first_line(error)}); export it again") from error


def sorted_out(
    found: Mapping[int, Tensor],
    *,
    shift: int,
    n_layers: int | None,
    name: str,
    method: object = "",
    model: object = "",
) -> ForeignVectors:
    """Vectors under the numbers of another tool, as vectors by our layer.

    Args:
        found: Number of a block to vector.
        shift: Our layer minus that number: 1 for outputs, 0 for inputs.
        n_layers: Number of blocks of the model; None if it is unknown, and then nothing is left out for its layer.
        name: What the file calls a vector, in front of its number.
        method: As the file says.
        model: As the file says.

    Raises:
        ValueError: If there is no vector, or they differ in width, or are no finite vectors.

    Example:
        >>> import torch
        >>> found = sorted_out({1: torch.ones(4), 7: torch.ones(4)}, shift=1, n_layers=8, name="direction.")
        >>> list(found.vectors), found.left_out
        ([2], ('direction.7, the output of the last block',))
    """
    left_out, vectors = [], {}
    if len(widths := {tuple(vector.shape) for vector in found.values()}) > 1 or any(len(one) != 1 for one in widths):
        raise ValueError(f"its vectors have shapes {' and '.join(map(str, sorted(widths)))}")
    for number, vector in sorted(found.items()):
        layer = number + shift
        if number < 0 or not vector.is_floating_point() or not vector.isfinite().all():
            raise ValueError(f"{name}{number} is no finite vector of a block")
        if n_layers is not None and layer >= n_layers:
            last = layer == n_layers and shift
            left_out.append(
                f"{name}{number}, {'the output of the last block' if last else 'a block that is not there'}"
            )
        elif not vector.any():
            left_out.append(f"{name}{number}, which is zero")
        else:
            vectors[layer] = vector.detach().cpu()
    if not vectors:
        raise ValueError(f"it has no vector that has a place here{': ' if left_out else ''}{'; '.join(left_out)}")
    return ForeignVectors(vectors, tuple(left_out), str(method or ""), str(model or ""))
