"""The command that checks the toolkit on a model."""

from cosmic_tl._util.progress import LOADING
from cosmic_tl.cli.derive import derived
from cosmic_tl.cli.options import DataOptions, ModelOptions
from cosmic_tl.cli.output import printable
from cosmic_tl.model.options import ChatFormat


@derived(LOADING)
def check(model: ModelOptions, data: DataOptions, chat: ChatFormat, *, n: int = 4) -> int:
    """Check positions, activations, scores, edits, completions, memory and speed on a model; exit code 1 if one fails.

    Args:
        n: Prompts per side.
    """
    contrast = data.load()
    bridge = model.load()
    from cosmic_tl.check.model_check import check_model

    found = check_model(bridge, contrast, chat=chat, n=n, on_check=lambda one: print(printable(str(one)), flush=True))
    print("All checks hold." if found.ok else "Some checks FAILED: do not rely on results of this model.")
    return 0 if found.ok else 1


COMMANDS = (check,)
