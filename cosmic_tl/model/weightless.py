"""Whether a model has values behind its weights."""

from transformer_lens.model_bridge import TransformerBridge


def is_on_paper(model: TransformerBridge) -> bool:
    """Whether a model's weights have shapes and no values, anywhere; offloaded weights have theirs in memory or on disk.

    Example:
        >>> from cosmic_tl import load_model
        >>> is_on_paper(load_model("demo", device="cpu"))
        False
    """
    inner = model.original_model
    return getattr(inner, "hf_device_map", None) is None and any(
        parameter.device.type == "meta" for parameter in inner.parameters()
    )
