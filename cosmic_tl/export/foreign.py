"""What a file of another tool holds once it is read: vectors, by our layer."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ForeignVectors:
    """The vectors of a file that another tool wrote.

    Our layer l is the input of block l. Most tools count outputs, and the output of block l − 1 is the input of block l: each
    reader converts what its format counts.
    """

    vectors: dict[int, Float[Tensor, "d_model"]]
    """By our layer, in ascending order, as long as the file has them."""
    left_out: tuple[str, ...] = ()
    """What has no place here, such as the output of the last block."""
    method: str = ""
    """How they were made, as far as the file says."""
    model: str = ""
    """The model that they were made for, as far as the file says."""
