"""The README.md of an exported folder: an adapter, or an edited checkpoint."""

import json
from collections.abc import Mapping
from typing import Any

from cosmic_tl.export.formats import Verdict

LOADING = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({base})
model = PeftModel.from_pretrained(model, "this/folder")  # or model.load_adapter("this/folder")
```
"""
EXPERTS = """
The experts of this model are one parameter, which peft adapts through `target_parameters`, laid out as in peft 0.21. Versions
without it (before 0.17) leave the experts out with no more than a warning.
"""
UNTYING = """
## Do not merge it as it is

This model's unembedding is tied to its token embeddings. Unmerged, the adapter changes the embeddings alone, as it should.
`merge_and_unload` would change the unembedding with them (peft warns and goes on): untie the two first,

```python
from torch import nn

model.lm_head.weight = nn.Parameter(model.get_input_embeddings().weight.detach().clone())
model.config.tie_word_embeddings = False
```

and then load and merge the adapter, or take an edited checkpoint (`cosmic-tl export … --to checkpoint`).
"""


def adapter_card(about: Mapping[str, Any], base: str | None, verdict: Verdict, *, tied: bool, fused: bool) -> str:
    """What an adapter is, how it is loaded, what must not be done with it, and what is known of the edit.

    Args:
        about: From `describe`.
        base: The model's name on the hub, if it is there.
        verdict: Whether it equals the edit.
        tied: Whether the unembedding shares the weights of the token embeddings.
        fused: Whether it holds a parameter of all experts.

    Example:
        >>> about = {"edit": "Ablation", "model": "demo", "licence": "Ours."}
        >>> print(adapter_card(about, None, Verdict("exact"), tied=False, fused=False).splitlines()[4])
        # Ablation for demo
    """
    body = ["A low-rank adapter that removes a direction from every matrix that writes to the residual stream."]
    body += [_equal(verdict, "with this adapter"), ""]
    body += [LOADING.format(base=json.dumps(base or "the model's folder")) + EXPERTS * fused + UNTYING * tied]
    return _card("peft", ["lora", "weight-orthogonalization"], about, base, body)


def edited_card(about: Mapping[str, Any], base: str | None, verdict: Verdict, what: str) -> str:
    """What an edited checkpoint is, and what is known of the edit.

    Args:
        about: From `describe`.
        base: The original model's name on the hub, if it is there.
        verdict: Whether it equals the edit.
        what: Which weights were changed, and how.

    Example:
        >>> about = {"edit": "Addition", "model": "demo", "licence": "Ours."}
        >>> print(edited_card(about, None, Verdict("exact"), "A bias was changed.").splitlines()[6])
        A copy of demo. A bias was changed.
    """
    body = [f"A copy of {about['model']}. {what}", _equal(verdict, "in this folder")]
    return _card("transformers", ["weight-edit"], about, base, body)


def _equal(verdict: Verdict, where: str) -> str:
    return (
        f"The model {where} equals the original one under the edit below, up to rounding."
        if verdict.status == "exact"
        else f"The model {where} is close to the original one under the edit below: {verdict.why}."
    )


def _card(library: str, tags: list[str], about: Mapping[str, Any], base: str | None, body: list[str]) -> str:
    rows = [f"| {name.replace('_', ' ')} | {_shown(value)} |" for name, value in about.items() if name != "licence"]
    lines = [
        "---",
        f"library_name: {library}",
        *([f"base_model: {json.dumps(base)}"] if base else []),
        f"tags: [{', '.join(tags)}]",
        "---",
        f"# {about['edit']} for {about['model']}",
        "",
        *body,
        "",
        "| | |",
        "|---|---|",
        *rows,
        "",
        "## Safety",
        "",
        "If the edit takes refusal away, the model answers requests that the original declines. It is meant for research into",
        f"how models represent such concepts. {about['licence']}",
        "",
    ]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
