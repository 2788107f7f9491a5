"""The README.md of an adapter."""

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


def adapter_card(about: Mapping[str, Any], base: str | None, verdict: Verdict, *, tied: bool) -> str:
    """What an adapter is, how it is loaded, what must not be done with it, and what is known of the edit.

    Args:
        about: From `describe`.
        base: The model's name on the hub, if it is there.
        verdict: Whether it equals the edit.
        tied: Whether the unembedding shares the weights of the token embeddings.

    Example:
        >>> about = {"edit": "Ablation", "model": "demo", "licence": "Ours."}
        >>> print(adapter_card(about, None, Verdict("exact"), tied=False).splitlines()[4])
        # Ablation for demo
    """
    equal = (
        "The model with this adapter equals the original one under directional ablation (Arditi et al. 2024, section 2.4)."
        if verdict.status == "exact"
        else f"The model with this adapter is close to the original one under directional ablation: {verdict.why}."
    )
    rows = [f"| {name.replace('_', ' ')} | {_shown(value)} |" for name, value in about.items() if name != "licence"]
    lines = [
        "---",
        "library_name: peft",
        *([f"base_model: {json.dumps(base)}"] if base else []),
        "tags: [lora, weight-orthogonalization]",
        "---",
        f"# {about['edit']} for {about['model']}",
        "",
        "A low-rank adapter that removes a direction from every matrix that writes to the residual stream.",
        equal,
        "",
        LOADING.format(base=json.dumps(base or "the model's folder")) + (UNTYING if tied else ""),
        "| | |",
        "|---|---|",
        *rows,
        "",
        "## Safety",
        "",
        "If the direction carries refusal, the model with this adapter answers requests that the original declines. It is meant",
        f"for research into how models represent such concepts. {about['licence']}",
        "",
    ]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
