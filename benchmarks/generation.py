"""Steered completions against unsteered ones of plain Hugging Face `generate`, with the same batches.

python -m benchmarks.generation
"""

import torch

from benchmarks.shapes import CHAT, Pair, alternate, prompts
from cosmic_tl import AffineEdit, Direction, complete
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import tokenize

N, NEW_TOKENS = 32, 32


def measure(rounds: int = 5) -> dict[str, float]:
    pair = Pair("small")
    texts = prompts(pair.bridge, N).side("negative", "val", N)
    edit = AffineEdit(Direction(torch.ones(512), torch.zeros(512), 5, -1), 0.0)

    def plain() -> None:
        with torch.inference_mode():
            for batch in batches(pair.bridge, tokenize(pair.bridge, texts, CHAT), N):
                out = pair.plain.generate(
                    batch.ids, attention_mask=batch.mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
                )
                pair.bridge.tokenizer.batch_decode(out[:, batch.ids.shape[1] :], skip_special_tokens=True)

    def steered() -> None:
        complete(pair.bridge, texts, edit, chat=CHAT, max_new_tokens=NEW_TOKENS, batch_size=N)

    return {"time over plain generate": alternate(steered, plain, rounds)}


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{name}: {value:.3f}")
