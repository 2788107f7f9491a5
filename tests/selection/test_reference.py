"""Scores against a plain implementation of the formulas: raw torch hooks on the Hugging Face model, full passes."""

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, AutoTokenizer

from cosmic_tl import CosmicOptions, select_cosmic
from cosmic_tl.model.load import demo_path

N_TRAIN, N_VAL = 32, 5


class Plain:
    """The released procedure, prompts of one length at a time, so that there is no padding."""

    def __init__(self):
        self.model = AutoModelForCausalLM.from_pretrained(
            demo_path(), dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(demo_path())
        self.layers = self.model.model.layers

    def rows(self, texts):
        template = lambda text: self.tokenizer.apply_chat_template(  # noqa: E731
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )["input_ids"]
        found = {}
        for ids in map(template, texts):
            found.setdefault(ids.shape[1], []).append(ids)
        return [torch.cat(some) for some in found.values()]

    @torch.inference_mode()
    def forward(self, rows, pre=None, everywhere=None):
        """Each prompt's x[l, -5:], y[l, -1] and last logits; `pre` = (layer, edit of its input)."""
        out = []
        for ids in rows:
            before, after, handles = {}, {}, []
            for number, block in enumerate(self.layers):

                def enter(module, args, kwargs, number=number, before=before):
                    x = args[0]
                    if everywhere:
                        x = everywhere(x)
                    if pre and pre[0] == number:
                        x = pre[1](x)
                    before[number] = x[:, -5:].double()
                    return (x, *args[1:]), kwargs

                def leave(module, args, output, number=number, after=after):
                    hidden = output[0] if isinstance(output, tuple) else output
                    after[number] = hidden[:, -1].double()

                handles += [
                    block.register_forward_pre_hook(enter, with_kwargs=True),
                    block.register_forward_hook(leave),
                ]
                if everywhere:
                    handles.append(block.self_attn.register_forward_hook(lambda m, a, o: (everywhere(o[0]), *o[1:])))
                    handles.append(block.mlp.register_forward_hook(lambda m, a, o: everywhere(o)))
            logits = self.model(ids).logits[:, -1].double()
            for handle in handles:
                handle.remove()
            n = len(self.layers)
            before, after = (torch.stack([some[i] for i in range(n)], dim=1) for some in (before, after))
            out.append((before, after, logits))
        return [torch.cat(some) for some in zip(*out, strict=True)]

    def scores(self, prompts, mode):
        """{(layer, position): (S_comply, S_refuse, KL)} and the evaluation layers."""
        data = {
            (side, split): self.rows(prompts.side(side, split, n))
            for side in ("positive", "negative")
            for split, n in (("train", N_TRAIN), ("val", N_VAL))
        }
        (mu_x, mu_y, _), (nu_x, nu_y, _) = (
            [t.mean(0) for t in self.forward(data[s, "train"])] for s in ("positive", "negative")
        )
        similarity = cosine_similarity(mu_y, nu_y, dim=-1)
        low = similarity.argsort()[: max(1, int(0.1 * len(self.layers)))].tolist()
        _, clean_pos, _ = self.forward(data["positive", "val"])
        _, clean_neg, clean_logits = self.forward(data["negative", "val"])
        t_pos, t_neg = clean_pos[:, low].mean((0, 1)), clean_neg[:, low].mean((0, 1))
        found = {}
        for layer in range(1, len(self.layers)):
            for position in range(-5, 0):
                r, nu = (mu_x - nu_x)[layer, position].float(), nu_x[layer, position].float()
                unit = r / r.norm()
                ablate = lambda x, unit=unit: x - (x @ unit)[..., None] * unit  # noqa: E731
                ace = lambda x, alpha, r=r, nu=nu, unit=unit: (  # noqa: E731
                    x - (x @ unit)[..., None] * unit + (nu @ unit) * unit + alpha * r
                )
                if mode == "linear":
                    remove = {"everywhere": ablate}
                    induce = {"pre": (layer, lambda x, r=r: x + r)}
                else:
                    remove = {"pre": (layer, lambda x, ace=ace: ace(x, 0.0))}
                    induce = {"pre": (layer, lambda x, ace=ace: ace(x, 1.0))}
                _, y, _ = self.forward(data["positive", "val"], **remove)
                s_comply = cosine_similarity(y[:, low].mean((0, 1)), t_neg, dim=0)
                _, y, _ = self.forward(data["negative", "val"], **induce)
                s_refuse = cosine_similarity(y[:, low].mean((0, 1)), t_pos, dim=0)
                _, _, logits = self.forward(data["negative", "val"], **remove)
                p, q = clean_logits.softmax(-1), logits.softmax(-1)
                kl = (p * ((p + 1e-6).log() - (q + 1e-6).log())).sum(-1).mean()
                found[layer, position] = (float(s_comply), float(s_refuse), float(kl))
        return found, low


@pytest.mark.parametrize("mode", ["affine", "linear"])
def test_scores_and_choice_equal_the_plain_formulas(demo, prompts, mode):
    options = CosmicOptions(mode=mode, n_train=N_TRAIN, n_val=N_VAL, full_table=True, n_resamples=0)
    found = select_cosmic(demo, prompts, options, batch_size=7)
    expected, low = Plain().scores(prompts, mode)
    assert list(found.evaluation_layers) == low
    table = found.table.set_index(["layer", "position"])
    for cell, scores in expected.items():
        row = table.loc[cell]
        assert (row.s_comply, row.s_refuse, row.kl) == pytest.approx(scores, abs=1e-4), cell
    # At layer 0 the post-instruction tokens are the same in both classes: there is no direction.
    assert table.loc[0].s_comply.isna().all()

    # The filters and the argmax, written out once more.
    def keep(cell):
        layer, position = cell
        medians = []
        for score in (0, 1):
            peaks = sorted(max(range(1, 8), key=lambda l, p=p: expected[l, p][score]) for p in range(-5, -1))  # noqa: E741
            medians.append(peaks[1])
        late = position == -1 and layer > medians[0] and layer > medians[1]
        return layer < 0.8 * 8 and expected[cell][2] <= 0.1 and not late

    best = max(filter(keep, expected), key=lambda cell: expected[cell][0] + expected[cell][1])
    assert (found.direction.layer, found.direction.position) == best

    # What the choice does not depend on can be left out; what is computed stays the same.
    assert not found.table.not_needed.any()
    short = select_cosmic(demo, prompts, CosmicOptions(mode=mode, n_train=N_TRAIN, n_val=N_VAL, n_resamples=0))
    assert (short.direction.layer, short.direction.position) == best
    for measure in ("s_comply", "s_refuse", "kl"):
        left_out = short.table.not_needed.str.contains(measure)
        difference = (short.table[measure] - found.table[measure]).abs()
        assert difference[left_out].isna().all()
        assert difference[~left_out].max() < 1e-4
    assert short.table.not_needed.str.contains("kl").mean() > 0.4


def test_batch_size_padding_and_order_change_nothing(demo, prompts):
    small = CosmicOptions(n_train=16, n_val=8, n_resamples=0)
    one, many = (select_cosmic(demo, prompts, small, batch_size=size) for size in (1, 40))
    shuffled = type(prompts)(
        prompts.name,
        {"train": prompts.positive["train"][:16][::-1], "val": prompts.positive["val"][:8][::-1]},
        {"train": prompts.negative["train"][:16][::-1], "val": prompts.negative["val"][:8][::-1]},
    )
    turned = select_cosmic(demo, shuffled, small, batch_size=9)
    columns = ["s_comply", "s_refuse", "kl"]
    for other in (many, turned):
        assert (one.table[columns] - other.table[columns]).abs().max().max() < 1e-5
        assert (one.candidates.vectors - other.candidates.vectors).abs().max() < 1e-5
        assert (one.direction.layer, one.direction.position) == (other.direction.layer, other.direction.position)
