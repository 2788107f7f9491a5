"""One patch by a whole pass of the plain Hugging Face model, under raw torch hooks."""

import torch


def plain_patch(hf, row, patch, layers, number=0):
    """The last token's stream after some blocks and its logits, by a whole pass under hooks on the plain modules.

    `number` is the prompt's, where there is a target for each.
    """
    kept, handles = {}, []
    blocks = hf.model.layers
    entered = {}

    def changed(x, change, part=None):
        position = patch.position if change.position is None else change.position
        old = x[0, position].double() if part is None else part
        target = change.target.double()
        target = target[number] if target.ndim == 2 else target
        read = change.read
        if read is None:
            new = target
        else:
            write = change.write if change.write is not None else read
            new = old + ((target - old) @ read.double()) * write.double()
        x = x.clone()
        x[0, position] += (new - old).to(x.dtype)
        return x

    def of_part(projection, x, change):
        """What one head or one neuron writes: its columns of the matrix times its values."""
        position = patch.position if change.position is None else change.position
        n_parts = hf.config.num_attention_heads if change.part == "attention" else projection.weight.shape[1]
        width = projection.weight.shape[1] // n_parts
        some = slice(change.index * width, (change.index + 1) * width)
        weight = projection.weight.double()  # [d_model, d_in]
        return weight[:, some] @ x[0, position, some].double()

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

        if change.index is not None:
            module, projection = (
                (block.self_attn, block.self_attn.o_proj)
                if change.part == "attention"
                else (block.mlp, block.mlp.down_proj)
            )

            def keep_part(_, args, kwargs, c=change, projection=projection):
                entered[id(c)] = of_part(projection, args[0], c)

            def leave_part(_, args, output, c=change):
                return whole(output, changed(first(output), c, entered[id(c)]))

            hook(projection, before=keep_part)
            hook(module, after=leave_part)
        elif change.part in ("stream", "block"):
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
