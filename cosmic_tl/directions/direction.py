"""A direction with all that is needed to apply it again."""

from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.sealed import DAMAGE, read_sealed, write_sealed
from cosmic_tl.errors import CosmicError, check_whole_number, first_line
from cosmic_tl.model.fingerprint import check_origin, model_fingerprint
from cosmic_tl.model.load import TransformerBridge, short_label

FORMAT = "cosmic_tl/direction/2"
_version = cache(version)  # cached, since it reads files and there are many directions


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on.

    Example:
        >>> sorted(versions())
        ['cosmic_tl', 'torch', 'transformer_lens', 'transformers']
    """
    return {name: _version(name) for name in ("cosmic_tl", "transformer_lens", "transformers", "torch")}


@checked
@dataclass(frozen=True, eq=False)
class Direction:
    """A direction in the residual stream at the input of one block.

    Its tensors are float32 copies on the CPU, independent of the tensors that it was made from.

    Raises:
        CosmicError: If the tensors' shapes differ or are not `(d_model,)`, a value is not finite, the vector is zero,
            or layer or position is not a whole number in range.
    """

    vector: Float[Tensor, " d_model"]
    """`r`, unnormalised: its length is what α = 1 adds. float32, on the CPU."""
    reference: Float[Tensor, " d_model"] | None
    """`nu`, the mean activation of the negative class at the same place: ACE's origin. float32, on the CPU. None if
    unknown; affine edits then raise an error."""
    layer: int
    """The block at whose input (`hook_resid_pre`) it was found and is applied, from 0."""
    position: int
    """The token position it was found at, counted from the end: −1 is the last."""
    method: str = "difference-in-means"
    fingerprint: str = ""
    """`model_fingerprint` of the model it was found in; "" applies to any."""
    model: str = ""
    """Name of that model, for people."""
    versions: dict[str, str] = field(default_factory=versions)

    def __post_init__(self) -> None:
        given = ("vector", "reference") if self.reference is not None else ("vector",)
        shapes = [tuple(getattr(self, name).shape) for name in given]
        if len(set(shapes)) > 1 or len(shapes[0]) != 1:
            raise CosmicError(
                f"direction: {' and '.join(f'{n} has shape {s}' for n, s in zip(given, shapes, strict=True))}; "
                "each must be (d_model,)"
            )
        for name in given:
            own = getattr(self, name).detach().to("cpu", torch.float32, copy=True).contiguous()
            object.__setattr__(self, name, own)
        check_whole_number("layer", self.layer)
        check_whole_number("position", self.position)
        if self.layer < 0:
            raise CosmicError(f"layer: found {self.layer}; layers count from 0")
        if self.position >= 0:
            raise CosmicError(f"position: found {self.position}; positions count from the end, and -1 is the last")
        if not all(getattr(self, name).isfinite().all() for name in given):
            raise CosmicError("direction: it holds NaN or infinite values; find it again on finite activations")
        if not self.vector.any():
            raise CosmicError("direction: its vector is zero, so it points nowhere; use prompts that differ")

    @property
    def hook(self) -> str:
        """TransformerLens's name of the hook point where it was found.

        Example:
            >>> Direction(torch.ones(4), torch.zeros(4), layer=3, position=-1).hook
            'blocks.3.hook_resid_pre'
        """
        return f"blocks.{self.layer}.hook_resid_pre"

    def known_reference(self) -> Float[Tensor, " d_model"]:
        """The reference, which affine edits need.

        Raises:
            CosmicError: If it is not known.

        Example:
            >>> Direction(torch.ones(4), None, layer=3, position=-1).known_reference()
            Traceback (most recent call last):
            cosmic_tl.errors.CosmicError: reference: this direction has none, and an affine edit needs the negative ...
        """
        if self.reference is None:
            raise CosmicError(
                "reference: this direction has none, and an affine edit needs the negative class's mean at its place; take it "
                "from `candidates.with_reference(model, prompts)`, or use Addition and Ablation (mode='linear')"
            )
        return self.reference

    @property
    def norm(self) -> float:
        """`‖r‖`.

        Example:
            >>> Direction(torch.ones(4), torch.zeros(4), layer=3, position=-1).norm
            2.0
        """
        return float(self.vector.norm())

    @property
    def unit(self) -> Float[Tensor, " d_model"]:
        """`r̂ = r / ‖r‖`.

        Example:
            >>> Direction(torch.ones(4), torch.zeros(4), layer=3, position=-1).unit
            tensor([0.5000, 0.5000, 0.5000, 0.5000])
        """
        unit: Tensor = self.vector / self.vector.norm()
        return unit

    def check(self, model: TransformerBridge) -> None:
        """Check that it belongs to a model, or to the model before `orthogonalize_weights`.

        Raises:
            CosmicError: If width, depth or fingerprint differ.

        Example:
            >>> from cosmic_tl import load_model
            >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
            >>> direction.check(load_model("demo", device="cpu"))
        """
        self.check_shape(model)
        check_origin(model, self.fingerprint, self.model)

    def check_shape(self, model: TransformerBridge) -> None:
        """Check that it has the width of a model's stream and one of its layers.

        Raises:
            CosmicError: If width or depth differ.

        Example:
            >>> from cosmic_tl import load_model
            >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
            >>> direction.check_shape(load_model("demo", device="cpu"))
        """
        d_model, n_layers = int(model.cfg.d_model), int(model.cfg.n_layers)
        if self.vector.shape[0] != d_model or self.layer >= n_layers:
            raise CosmicError(
                f"direction: it has width {self.vector.shape[0]} and layer {self.layer}, and the model width {d_model} and "
                f"{n_layers} layers; load the model it was found in ({self.model or 'unknown'})"
            )

    def for_model(self, model: TransformerBridge) -> "Direction":
        """The same vector for another model, on purpose: for a fine-tune of the model that it was found in, or its base model.

        Whether it means the same there is for you to measure. `method` says where it was found. The reference stays behind, since
        it is an activation of the model that it was measured in.

        Args:
            model: A model with a stream of the same width, and this layer.

        Raises:
            CosmicError: If width or depth differ.

        Example:
            >>> from cosmic_tl import load_model
            >>> direction = Direction(torch.ones(128), None, 3, -1, fingerprint="0123456789abcdef", model="chat")
            >>> direction.for_model(load_model("demo", device="cpu"))
            Direction(difference-in-means, found in chat (0123456789abcdef), layer 3, position -1, norm 11.3, demo)
        """
        self.check_shape(model)
        if self.fingerprint == (own := model_fingerprint(model)):
            return self
        found_in = f"{self.model or 'a model'} ({self.fingerprint})" if self.fingerprint else "an unknown model"
        method = f"{self.method}, found in {found_in}"
        return replace(self, reference=None, method=method, fingerprint=own, model=short_label(model))

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, completely or not at all.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Direction(torch.ones(4), torch.zeros(4), layer=3, position=-1).save(f"{folder}/d.safetensors")
            ...     Direction.load(f"{folder}/d.safetensors").layer
            3
        """
        settings = {
            "format": FORMAT,
            "layer": self.layer,
            "position": self.position,
            "hook": self.hook,
            "method": self.method,
            "fingerprint": self.fingerprint,
            "model": self.model,
            "versions": self.versions,
            "reference": self.reference is not None,
        }
        tensors = {"vector": self.vector} | ({} if self.reference is None else {"reference": self.reference})
        write_sealed(Path(path), tensors, settings)

    @classmethod
    def load(cls, path: str | Path, model: TransformerBridge | None = None) -> "Direction":
        """Read a file that `save` wrote.

        Args:
            path: Path of the file.
            model: If given, check that the direction belongs to it.

        Raises:
            CosmicError: If the file is missing, damaged or not a direction, or does not belong to the model.

        Example:
            >>> Direction.load("nowhere.safetensors")
            Traceback (most recent call last):
            cosmic_tl.errors.CosmicError: direction: no file 'nowhere.safetensors'; give the path of a saved direction
        """
        if not Path(path).is_file():
            raise CosmicError(f"direction: no file {str(path)!r}; give the path of a saved direction")
        try:
            settings, tensors = read_sealed(Path(path))
            if (form := settings.pop("format", None)) != FORMAT:
                raise ValueError(f"its format is {form!r} and not {FORMAT!r}")
            hook, has_reference = settings.pop("hook"), settings.pop("reference")
            if not all(isinstance(settings.get(name, ""), str) for name in ("method", "fingerprint", "model")):
                raise TypeError("method, fingerprint and model must be texts")
            direction = cls(tensors["vector"], tensors["reference"] if has_reference else None, **settings)
        except DAMAGE as error:
            raise CosmicError(
                f"direction: {str(path)!r} is not a saved direction ({first_line(error)}); save it again"
            ) from error
        if hook != direction.hook:
            raise CosmicError(f"direction: {str(path)!r} says hook {hook!r} and layer {direction.layer}; save it again")
        if model is not None:
            direction.check(model)
        return direction

    def __repr__(self) -> str:
        where = f"layer {self.layer}, position {self.position}"
        return f"Direction({self.method}, {where}, norm {self.norm:.3g}, {self.model or 'any model'})"


@checked
def random_direction(like: Direction, seed: int = 0) -> Direction:
    """A placebo: a random direction of the same norm and place, with the same reference.

    Args:
        like: The direction to compare with.
        seed: Seed of the random direction. Default 0.

    Example:
        >>> d = Direction(torch.ones(4), torch.zeros(4), layer=3, position=-1)
        >>> round(random_direction(d).norm, 5)
        2.0
    """
    noise = torch.randn(like.vector.shape, generator=torch.Generator().manual_seed(seed))
    return replace(like, vector=noise / noise.norm() * like.vector.norm(), method=f"random (seed {seed})")
