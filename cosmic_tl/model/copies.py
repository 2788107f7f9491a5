"""Whether copies of a model, in other processes, can do what is asked of it."""

from hashlib import sha256

from cosmic_tl._util.spreading import Spread, current_spread
from cosmic_tl.model.fingerprint import model_fingerprint
from cosmic_tl.model.hooks import hooks_around
from cosmic_tl.model.load import TransformerBridge


def as_loaded(model: TransformerBridge) -> tuple[str, ...]:
    """What copies of a model must have in common: weights, number format and chat template.

    Example:
        >>> from cosmic_tl import load_model
        >>> as_loaded(load_model("demo", device="cpu"))[1]
        'torch.float32'
    """
    template = getattr(model.tokenizer, "chat_template", None)
    return model_fingerprint(model), str(model.cfg.dtype), sha256(repr(template).encode()).hexdigest()[:16]


def copies_of(model: TransformerBridge) -> Spread | None:
    """The copies that share work now, if they are of this model as it is: with its weights, and without edits around it.

    Args:
        model: The model of this process.

    Example:
        >>> from cosmic_tl import load_model
        >>> copies_of(load_model("demo", device="cpu"))
    """
    copies = current_spread()
    if copies is None or hooks_around(model):  # which copies do not have
        return None
    return copies if copies.model == as_loaded(model) else None
