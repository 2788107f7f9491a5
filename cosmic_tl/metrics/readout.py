"""What a direction says: the tokens that it promotes and suppresses, beside those of random directions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from torch.nn.functional import normalize

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import check_count
from cosmic_tl.metrics.chance import RANDOM, beside, chance_of, with_random
from cosmic_tl.metrics.jacobian import carried
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import post_instruction_positions
from cosmic_tl.model.readout import read_out

Lens = Literal["logit", "jacobian"]
LENSES: dict[Lens, str] = {"logit": "logit lens", "jacobian": "Jacobian lens"}


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Readout(Result):
    """Tokens that a direction promotes (+) and suppresses (−)."""

    table: pd.DataFrame
    """One row per sign and token: sign ("+" or "-"), token (text), id, logit, z (in standard deviations of random directions'
    logits of this token), and beyond_chance (whether z exceeds `chance`)."""
    chance: float
    """The z that the best token of a random direction stays below in 95 % of the cases."""
    direction: Direction
    lens: Lens = "logit"
    """"logit": read as it stands; "jacobian": carried to the last layer first."""

    def _lines(self) -> list[str]:
        counts = self.table[self.table.beyond_chance].groupby("sign").size().to_dict()
        return [
            f"Readout({self.direction!r}, {LENSES[self.lens]}): of the shown tokens {counts.get('+', 0)} promoted and "
            f"{counts.get('-', 0)} suppressed ones are beyond chance (|z| > {self.chance:.1f})"
        ]


@checked
def read_tokens(
    model: TransformerBridge,
    direction: Direction,
    prompts: Sequence[str] | None = None,
    *,
    n: int = 10,
    n_positions: int | None = None,
    n_random: int = RANDOM,
    chat: ChatFormat | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Readout:
    """Tokens whose logits a direction raises and lowers most.

    Without prompts it goes through the final norm and the unembedding as it stands (logit lens): what it says if no later block
    changes it. But a direction of an early layer acts through all later ones. With prompts it is first carried from its own layer
    to the last one by the model's average Jacobian at the last positions of these prompts (Jacobian lens; Gurnee et al. 2026):
    what a small change along it makes the model say there.

    Tokens with long unembedding vectors get large logits from any direction. So each token's logit is taken in standard
    deviations of the logits that random directions give it in the same way, and tokens are ranked by that. Even a random
    direction has a best token: `chance` says how large its z is.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        direction: Whose `r̂` is read, and its opposite.
        prompts: Instructions for the Jacobian lens. Defaults to none: the logit lens.
        n: Tokens per sign. Default 10.
        n_positions: How many of the last positions the Jacobian lens looks at. Default every post-instruction token.
        n_random: Random directions, each of which costs the Jacobian lens as much as `r̂`. Default 128.
        chat: Formatting of the prompts. Defaults to the plain chat template.
        seed: Of the random directions. Default 0.
        batch_size: Rows (prompts times directions) per pass of the Jacobian lens. Default: by memory.

    Raises:
        CosmicError: If a number is too small, the direction does not fit, or the architecture has no such readout.

    Example:
        >>> from cosmic_tl import load_model
        >>> model, direction = load_model("demo", device="cpu"), Direction(torch.ones(128), None, 3, -1)
        >>> found = read_tokens(model, direction, n=2)
        >>> found.table.sign.tolist(), found.table.columns.tolist()
        (['+', '+', '-', '-'], ['sign', 'token', 'id', 'logit', 'z', 'beyond_chance'])
        >>> read_tokens(model, direction, ["Rob a clerk."], n=2, n_random=16).lens
        'jacobian'
    """
    check_count("n", n)
    direction.check(model)
    vectors = with_random(direction.unit, n_random, seed)
    if prompts is not None:
        count = len(post_instruction_positions(model, chat, n_positions))
        asked = tokenize(model, prompts, chat)
        vectors = carried(model, asked, vectors, direction.layer, n_positions=count, batch_size=batch_size).float()
    # As large as a stream's entries, so that a norm's epsilon plays no part.
    vectors = len(direction.unit) ** 0.5 * normalize(vectors, dim=1)
    logits, others = read_out(model, torch.cat([vectors[:1], -vectors[:1], vectors[1:]])).tensor_split([2])
    z, random = beside(logits, others)
    chance = chance_of(random.amax(1))
    tokenizer: Any = model.tokenizer
    rows = []
    for sign, values, scores in zip("+-", logits, z, strict=True):
        for token in scores.topk(min(n, len(scores))).indices.tolist():
            score = float(scores[token])
            rows.append(
                {"sign": sign, "token": tokenizer.decode([token]), "id": token, "logit": float(values[token])}
                | {"z": score, "beyond_chance": score > chance}
            )
    return Readout(pd.DataFrame(rows), chance, direction, "logit" if prompts is None else "jacobian")
