"""llama.cpp's control vectors: what to add to the outputs of blocks, as GGUF."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from ctypes import c_float
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cosmic_tl.errors import CosmicError
from cosmic_tl.export.block_outputs import added, block_before
from cosmic_tl.export.foreign import ForeignVectors, reading, sorted_out
from cosmic_tl.export.formats import EXACT, Format, Logits, Verdict
from cosmic_tl.export.gguf_file import numbered, read_gguf, write_gguf
from cosmic_tl.interventions.edits import Edit
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.paths import GGUF

ARCHITECTURE = "controlvector"
FIRST = 1
"""llama.cpp has no place for the output of block 0."""


class ControlVector(Format):
    """A control vector (GGUF) for llama.cpp's `--control-vector`, which adds `direction.L` to the output of block L.

    The input of block l is the output of block l − 1, so that an addition at layer l is `direction.{l-1}` = α r.
    """

    name = "llama.cpp"
    title = "control vector for llama.cpp (GGUF)"
    file = "vector.gguf"
    reader = "llama_cpp"
    carries: ClassVar[Mapping[str, Verdict]] = {"Addition": EXACT}
    first_layer = FIRST + 1
    otherwise = Verdict("impossible", "it is added to the stream, whatever is there")

    def write(self, model: TransformerBridge, edit: Edit, path: Path, about: Mapping[str, Any]) -> None:
        """Write the file; what is known of it is in its fields `cosmic_tl.…`."""
        check_suffix(path, GGUF, self.name)
        block = block_before(model, edit)
        write_gguf(path, ARCHITECTURE, hints(model) | {"cosmic_tl": about}, {f"direction.{block}": added(edit)})

    @contextmanager
    def applied(self, path: Path, model: TransformerBridge) -> Iterator[Logits]:
        """Run llama.cpp with the file, on the model's own GGUF."""
        with reading(path, "a control vector"):
            directions = numbered(read_gguf(path)[1])
        with _llama(model, directions) as logits_of:
            yield logits_of

    def unedited(self, model: TransformerBridge) -> AbstractContextManager[Logits]:
        """llama.cpp without a vector: its weights and activations are quantized, which alone moves the logits."""
        return _llama(model, {})


def check_suffix(path: Path, suffix: str, form: str) -> None:
    """Check the ending of a file's name, without which its reader does not take it.

    Raises:
        CosmicError: If it is another.

    Example:
        >>> check_suffix(Path("vector.bin"), ".gguf", "llama.cpp")
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: out: found 'vector.bin'; files for llama.cpp end in .gguf
    """
    if path.suffix != suffix:
        raise CosmicError(f"out: found {path.name!r}; files for {form} end in {suffix}")


def hints(model: TransformerBridge) -> dict[str, Any]:
    """What a control vector says of its model: its type, and the number of blocks that there can be a vector for.

    That number is the one that repeng and llama.cpp's own generator write for a whole model.

    Example:
        >>> from cosmic_tl import load_model
        >>> hints(load_model("demo", device="cpu"))
        {'controlvector.model_hint': 'qwen2', 'controlvector.layer_count': 7}
    """
    return {
        f"{ARCHITECTURE}.model_hint": str(model.original_model.config.model_type),
        f"{ARCHITECTURE}.layer_count": int(model.cfg.n_layers) - 1,
    }


def depth(fields: Mapping[str, Any], numbers: Mapping[int, Any]) -> int | None:
    """Number of blocks of the model of a control vector; None if the file does not tell.

    A file whose vectors are those from 1 to its layer count has one for every block but the first. Files with fewer vectors have
    their number in that field, or, from here, the whole model's.

    Example:
        >>> depth({"controlvector.layer_count": 2}, {1: "", 2: ""}), depth({"controlvector.layer_count": 2}, {5: "", 6: ""})
        (3, None)
    """
    count = fields.get(f"{ARCHITECTURE}.layer_count")
    if not isinstance(count, int) or not numbers:
        return None
    return count + 1 if min(numbers) == 1 and max(numbers) == len(numbers) == count else None


def read(path: Path, n_layers: int | None = None) -> ForeignVectors:
    """The vectors of a control vector, whoever wrote it, by our layer; no code is run.

    The last block's output has no place here, and is left out.

    Args:
        path: The file.
        n_layers: Number of blocks of the model, by which its last one is known. Defaults to None: by what the file says, if it
            has a vector for each block.

    Returns:
        `direction.L` at layer L + 1: what is added at strength 1.

    Raises:
        CosmicError: If it is missing, damaged or no control vector, or to be projected out instead of added.

    Example:
        >>> read(Path("nowhere.gguf"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: file: no file 'nowhere.gguf'; give the path of a control vector
    """
    with reading(path, "a control vector"):
        fields, tensors = read_gguf(path)
        if (kind := fields.get("general.architecture")) != ARCHITECTURE:
            raise ValueError(f"its architecture is {kind!r}")
        if (mode := fields.get("glp.mode", "add")) != "add":
            raise ValueError(f"its vectors are not for addition but for the mode {mode!r} of the format glp")
        found = numbered(tensors)
        return sorted_out(
            found,
            shift=1,
            n_layers=n_layers or depth(fields, found),
            name="direction.",
            method=fields.get("cosmic_tl.method"),
            model=fields.get("cosmic_tl.model") or fields.get(f"{ARCHITECTURE}.model_hint"),
        )


def _own_gguf(model: TransformerBridge) -> Path:
    """The model's own GGUF file."""
    own = Path(str(model.cfg.model_name))
    for path in (own, own / f"model{GGUF}"):
        if path.suffix == GGUF and path.is_file():
            return path
    raise CosmicError(
        f"reader: llama.cpp takes the model as GGUF, and {str(own)!r} has none; load a {GGUF} file, or put model{GGUF} beside "
        "the model's files"
    )


@contextmanager
def _llama(model: TransformerBridge, directions: Mapping[int, Tensor]) -> Iterator[Logits]:
    """llama.cpp on the model's own GGUF file, with vectors by the numbers that they have in their file."""
    path = _own_gguf(model)
    try:
        llama: Any = import_module("llama_cpp")
    except (ImportError, OSError, RuntimeError) as error:  # its library may be for another machine
        raise CosmicError(
            "reader: llama-cpp-python is not installed; pip install llama-cpp-python, or make test-llamacpp MODEL=….gguf"
        ) from error
    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
    llama.llama_backend_init()
    loaded = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    if not loaded:
        raise CosmicError(
            f"reader: llama.cpp does not load {str(path)!r}; give a GGUF file of an architecture that it has"
        )
    try:
        width, vocab = llama.llama_model_n_embd(loaded), llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(loaded))
        shape = (width, llama.llama_model_n_layer(loaded), vocab)
        if shape != (here := (int(model.cfg.d_model), int(model.cfg.n_layers), int(model.cfg.d_vocab))):
            raise CosmicError(
                f"reader: {str(path)!r} has width, depth and vocabulary {shape}, and the model {here}; put the same model there"
            )
        yield lambda ids, _: _logits(llama, loaded, ids, directions, vocab)
    finally:
        llama.llama_model_free(loaded)


def _logits(llama: Any, loaded: Any, ids: Tensor, directions: Mapping[int, Tensor], vocab: int) -> Tensor:
    """Of all tokens, in one pass and a context of its own."""
    n = ids.shape[1]
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = n
    params.n_threads = params.n_threads_batch = torch.get_num_threads()
    if not (context := llama.llama_init_from_model(loaded, params)):
        raise CosmicError(f"reader: llama.cpp has no memory for {n} tokens; give shorter prompts")
    batch = llama.llama_batch_init(n, 0, 1)
    try:
        if directions:
            _set_vector(llama, context, directions)
        for at, token in enumerate(ids[0].tolist()):
            batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.logits[at] = token, at, 1, True
            batch.seq_id[at][0] = 0
        batch.n_tokens = n
        if code := llama.llama_decode(context, batch):
            raise CosmicError(f"reader: llama.cpp cannot read {n} tokens (code {code}); give shorter prompts")
        found = np.ctypeslib.as_array(llama.llama_get_logits(context), shape=(n * vocab,))
        return torch.from_numpy(found.reshape(1, n, vocab).copy())
    finally:
        llama.llama_batch_free(batch)
        llama.llama_free(context)


def _set_vector(llama: Any, context: Any, directions: Mapping[int, Tensor]) -> None:
    """As llama.cpp's command line does with a file: one buffer, in which block 1 is the first."""
    last, [width] = max(directions), next(iter(directions.values())).shape
    if last >= (n_layers := llama.llama_model_n_layer(llama.llama_get_model(context))):
        raise CosmicError(f"file: it has direction.{last}, and the model {n_layers} blocks; export it for this model")
    rows = torch.zeros(last, width)
    for block, vector in directions.items():
        rows[block - 1] = vector
    data = (c_float * rows.numel())(*rows.flatten().tolist())
    set_vector = getattr(llama, "llama_set_adapter_cvec", None) or llama.llama_apply_adapter_cvec  # before 0.3.17
    if set_vector(context, data, rows.numel(), width, 1, last):
        raise CosmicError("reader: llama.cpp refuses the control vector; export it again for this model")
