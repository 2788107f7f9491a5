"""Matrix products in float32 on a CPU with the faster of the two libraries that torch ships with."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, no_type_check

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

WORTH_ONEDNN = 16
"""Number of tokens from which oneDNN is faster; below, the call overhead exceeds the gain."""
ONEDNN = bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
"""Whether this build of torch has oneDNN."""


def fast_linear() -> AbstractContextManager[object]:
    """The context in which `torch.nn.functional.linear` is fastest on this processor.

    For float32 on a CPU torch calls MKL, which leaves half of AVX-512 unused on processors that are not from Intel. oneDNN,
    which torch uses for bfloat16, does not. Without AVX-512 MKL is a tenth faster, and every operation is spared the
    look at it that `FastLinear` takes.

    Example:
        >>> with torch.inference_mode(), fast_linear():
        ...     linear(torch.ones(32, 4), torch.ones(2, 4))[0]
        tensor([4., 4.])
    """
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return FastLinear() if ONEDNN and wide else nullcontext()


class FastLinear(TorchFunctionMode):
    """Compute `torch.nn.functional.linear` with oneDNN within the context. Results equal torch's to rounding.

    Only calls without gradients are affected.

    Example:
        >>> x, weight = torch.ones(32, 4), torch.ones(2, 4)
        >>> with torch.inference_mode(), FastLinear():
        ...     linear(x, weight)[0]
        tensor([4., 4.])
    """

    @no_type_check  # runs for every operation; a check of its arguments would take longer than most of them
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is linear and not kwargs and _fits(*args):
            x, weight, bias = (*args, None)[:3]
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def _fits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() >= WORTH_ONEDNN * x.shape[-1]
        and not torch.is_grad_enabled()
        and type(x) is torch.Tensor
        and type(weight) in (torch.Tensor, torch.nn.Parameter)
        and ONEDNN
    )
