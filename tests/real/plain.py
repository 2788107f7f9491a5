"""The formulas on a plain Hugging Face model, with raw torch hooks: no bridge, no hook names, one prompt length at a time."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ATTENTION = ("self_attn", "attn", "attention")
MLP = ("mlp", "feed_forward", "block_sparse_moe")


class PlainModel:
    """A checkpoint as plain transformers loads it, and its decoder blocks."""

    def __init__(self, path, device="cpu", dtype=torch.float32):
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval().to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        n_layers = self.model.config.get_text_config().num_hidden_layers
        lists = [m for m in self.model.modules() if isinstance(m, torch.nn.ModuleList)]
        self.blocks = next(found for found in lists if len(found) == n_layers)

    def ids(self, text):
        """One chat message as token ids, a batch of one."""
        messages = [{"role": "user", "content": text}]
        options = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        return self.tokenizer.apply_chat_template(messages, **options)["input_ids"].to(self.model.device)

    def batches(self, texts):
        """Prompts of one length at a time, so that nothing is padded."""
        found = {}
        for ids in map(self.ids, texts):
            found.setdefault(ids.shape[1], []).append(ids)
        return [torch.cat(some) for some in found.values()]

    @torch.inference_mode()
    def run(self, texts, n_positions=1, pre=None, everywhere=None):
        """`x[l, -n:]`, `y[l, -n:]` and the last logits of each prompt, in float64; the order is that of `batches`.

        Args:
            texts: Chat messages.
            n_positions: How many of the last positions.
            pre: (layer, edit of its input).
            everywhere: Edit of each block's input and of what attention and MLP add.
        """
        out = []
        for ids in self.batches(texts):
            before, after, handles = {}, {}, []
            for number, block in enumerate(self.blocks):

                def enter(module, args, kwargs, number=number, before=before):
                    x = args[0]
                    if everywhere:
                        x = everywhere(x)
                    if pre and pre[0] == number:
                        x = pre[1](x)
                    before[number] = x[:, -n_positions:].double().cpu()
                    return (x, *args[1:]), kwargs

                def leave(module, args, output, number=number, after=after):
                    hidden = output[0] if isinstance(output, tuple) else output
                    after[number] = hidden[:, -n_positions:].double().cpu()

                handles += [
                    block.register_forward_pre_hook(enter, with_kwargs=True),
                    block.register_forward_hook(leave),
                ]
                if everywhere:
                    for names in (ATTENTION, MLP):
                        part = next(getattr(block, name) for name in names if hasattr(block, name))
                        handles.append(part.register_forward_hook(_edit_output(everywhere)))
            try:
                logits = self.model(ids, logits_to_keep=1).logits[:, -1].double().cpu()
            finally:
                for handle in handles:
                    handle.remove()
            layers = range(len(self.blocks))
            out.append((*(torch.stack([some[i] for i in layers], dim=1) for some in (before, after)), logits))
        return [torch.cat(some) for some in zip(*out, strict=True)]


def _edit_output(edit):
    def hook(module, args, output):
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    return hook


def ablate(r):
    """x' = x − (x·r̂) r̂"""
    unit = r / r.norm()
    return lambda x: x - (x @ unit)[..., None] * unit


def add(r, alpha=1.0):
    """x' = x + α r"""
    return lambda x: x + alpha * r


def ace(r, nu, alpha):
    """x' = x − (x·r̂) r̂ + (nu·r̂) r̂ + α r"""
    unit = r / r.norm()
    return lambda x: x - (x @ unit)[..., None] * unit + (nu @ unit) * unit + alpha * r


def kl(clean, edited, eps=1e-6):
    """Σ p·(log(p + ε) − log(q + ε)), mean over prompts, of float64 logits."""
    p, q = clean.softmax(-1), edited.softmax(-1)
    return float((p * ((p + eps).log() - (q + eps).log())).sum(-1).mean())
