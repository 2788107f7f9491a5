"""A direction with all that is needed to apply it again."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.foreign_formats import READERS, RUN, by_name
from cosmic_tl._util.sealed import DAMAGE, read_sealed, write_sealed
from cosmic_tl._util.versions import versions
from cosmic_tl.activations import stream_at
from cosmic_tl.data.contrast_set import Prompts, sides_of
from cosmic_tl.directions.loading import check_said, foreign_direction, is_foreign_file, known_endings
from cosmic_tl.errors import CosmicError, check_whole_number, first_line
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.fingerprint import check_origin, model_fingerprint
from cosmic_tl.model.load import TransformerBridge, short_label

FORMAT = "cosmic_tl/direction/2"


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
                "reference: this direction has none, and an affine edit needs the negative class's mean at its place; take "
                "`direction.with_reference(model, prompts)`, or use Addition and Ablation (mode='linear')"
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

    def with_reference(
        self,
        model: TransformerBridge,
        prompts: Prompts,
        *,
        chat: ChatFormat | None = None,
        batch_size: int | None = None,
    ) -> "Direction":
        """The same direction with the reference that affine edits need, measured on negative training prompts at its place.

        The reference is an activation of this model, so the direction belongs to this model from then on.

        Args:
            model: The model that the direction belongs to.
            prompts: A contrast set, whose training prompts are taken, or a pair of lists: positive and negative prompts.
            chat: Formatting. Defaults to the plain chat template.
            batch_size: Prompts per forward pass. Default: by memory, at most 32.

        Raises:
            CosmicError: If the direction does not fit the model, or a prompt is blank, too long, or shorter than the position.

        Example:
            >>> from cosmic_tl import load_model
            >>> direction = Direction(torch.ones(128), None, layer=3, position=-1, method="PCA")
            >>> asked = ["Rob a bank clerk."], ["Bake a pizza."]
            >>> measured = direction.with_reference(load_model("demo", device="cpu"), asked)
            >>> measured, measured.known_reference().shape
            (Direction(PCA, layer 3, position -1, norm 11.3, demo), torch.Size([128]))
        """
        self.check(model)
        _, negative = sides_of(prompts, "train")
        stream = stream_at(model, negative, self.layer, self.position, chat=chat, batch_size=batch_size)
        fingerprint = self.fingerprint or model_fingerprint(model)
        name = self.model if self.fingerprint else short_label(model)
        return replace(self, reference=stream.mean(0), fingerprint=fingerprint, model=name)

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
    def load(
        cls,
        path: str | Path,
        model: TransformerBridge | None = None,
        *,
        layer: int | None = None,
        position: int | None = None,
    ) -> "Direction":
        """Read a file that `save` wrote, the direction of a run, or one vector of another tool's file.

        Of other tools: `.gguf` (llama.cpp's control vectors, GLP), `.svec` (IBM's activation-steering), lm-eval's `.pt`,
        `direction.pt` with `direction_metadata.json` beside it and `mean_diffs.pt` (the single-direction and COSMIC programs),
        and plain tensors (`.pt`, `.safetensors`, `.npy`, `.npz`). Layers are converted where a format counts outputs, since the
        output of block l − 1 is the input of block l; row or name l of plain tensors stands for the input of block l. No code is
        run from a file. What is read so has no reference (`with_reference`), and fits any model of its width.

        Args:
            path: Path of the file, or the directory of a run.
            model: If given, check that the direction belongs to it.
            layer: Which layer's vector, if the file holds several; where it belongs, if the file does not say.
            position: The same for the position, counted from the end. Where nobody says, the last: −1.

        Raises:
            CosmicError: If the file is missing, damaged or not a direction, says another layer or position than asked for, holds
                several, or does not belong to the model.

        Example:
            >>> Direction.load("nowhere.safetensors")
            Traceback (most recent call last):
            cosmic_tl.errors.CosmicError: direction: no file 'nowhere.safetensors'; give the path of a saved direction
        """
        path = Path(path)
        if path.is_dir():
            direction: Direction = by_name(RUN)(path).direction
        elif is_foreign_file("direction", path, "give the path of a saved direction"):
            n_layers = None if model is None else int(model.cfg.n_layers)
            vector, layer, position, method, found_in = foreign_direction(path, layer, position, n_layers)
            direction = cls(vector, None, layer, position, method, model=found_in)
        else:
            direction = cls._saved(path)
        check_said("layer", layer, direction.layer, path)
        check_said("position", position, direction.position, path)
        if model is not None:
            direction.check(model)
        return direction

    @classmethod
    def _saved(cls, path: Path) -> "Direction":
        """Read a file that `save` wrote."""
        try:
            settings, tensors = read_sealed(path)
            if (form := settings.pop("format", None)) != FORMAT:
                raise ValueError(f"its format is {form!r} and not {FORMAT!r}")
            hook, has_reference = settings.pop("hook"), settings.pop("reference")
            if not all(isinstance(settings.get(name, ""), str) for name in ("method", "fingerprint", "model")):
                raise TypeError("method, fingerprint and model must be texts")
            direction = cls(tensors["vector"], tensors["reference"] if has_reference else None, **settings)
        except DAMAGE as error:
            other = "" if path.suffix.lower() in READERS else f", or give a file that ends in {known_endings()}"
            raise CosmicError(
                f"direction: {str(path)!r} is not a saved direction ({first_line(error)}); save it again{other}"
            ) from error
        if hook != direction.hook:
            raise CosmicError(f"direction: {str(path)!r} says hook {hook!r} and layer {direction.layer}; save it again")
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
