"""Vectors of the stream read through the final norm and the unembedding."""

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis.logit_lens import logit_readout

from cosmic_tl.errors import CosmicError, first_line
from cosmic_tl.model.hooks import alone, without_hooks


def read_out(model: TransformerBridge, vectors: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
    """Logits that a stream equal to each vector would give, in float32 on the CPU; hooks on the model play no part.

    Args:
        model: A `TransformerBridge`.
        vectors: In the stream that leaves the last block.

    Raises:
        CosmicError: If the architecture has no such readout.

    Example:
        >>> from cosmic_tl import load_model
        >>> read_out(load_model("demo", device="cpu"), torch.ones(2, 128)).shape
        torch.Size([2, 2048])
    """
    place = vectors.to(torch.device(str(model.cfg.device)), model.cfg.dtype)
    try:
        with alone(model), without_hooks(model):
            logits: Tensor = logit_readout(model, place).values.float().cpu()
            return logits
    except (NotImplementedError, ValueError) as error:
        raise CosmicError(f"model: its stream cannot be read as tokens ({first_line(error)})") from error
