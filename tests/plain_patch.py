"""One patch by a whole pass of the plain Hugging Face model, under raw torch hooks."""

import torch


def plain_patch(hf, row, patch, layers):
    """The last token's stream after some blocks and its logits, by a whole pass under hooks on the plain modules."""
    kept, handles = {}, []
    blocks = hf.model.layers
    entered = {}

    def changed(x, change):
        position = patch.position if change.position is None else change.position
        old = x[0, position].double()
        read = change.read
        if read is None:
            new = change.target.double()
        else:
            write = change.write if change.write is not None else read
            new = old + ((change.target.double() - old) @ read.double()) * write.double()
        x = x.clone()
        x[0, position] = new.to(x.dtype)
        return x

    def first(output):
        return output[0] if isinstance(output, tuple) else output

    def whole(output, x):
        return (x, *output[1:]) if isinstance(output, tuple) else x

    def hook(module, before=None, after=None):
        if before is not None:
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        if after is not None:
            handles.append(module.register_forward_hook(after))

    for change in patch.changes:
        block = blocks[change.layer]
        sandwich = hasattr(block, "post_feedforward_layernorm")  # norms stand before what is added
        attention = block.post_attention_layernorm if sandwich else block.self_attn
        mlp = block.post_feedforward_layernorm if sandwich else block.mlp

        def enter(module, args, kwargs, c=change):
            entered[c.layer] = args[0]
            return ((changed(args[0], c), *args[1:]), kwargs) if c.part == "stream" else None

        def leave(module, args, output, c=change):
            x = entered[c.layer] if c.part == "block" else 0
            return whole(output, x + changed(first(output) - x, c))

        if change.part in ("stream", "block"):
            hook(block, before=enter, after=leave if change.part == "block" else None)
        else:
            hook(attention if change.part == "attention" else mlp, after=leave)
    for layer in layers:

        def keep(module, args, output, at=layer):
            kept[at] = first(output)[0, -1].double()

        hook(blocks[layer], after=keep)
    try:
        with torch.inference_mode():
            logits = hf(torch.tensor([row], device=hf.device)).logits[0, -1].double()
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat([*(kept[layer] for layer in layers), logits])
