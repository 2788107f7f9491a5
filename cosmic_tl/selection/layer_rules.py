"""Rules by which COSMIC's evaluation layers are picked: the paper's, and others that look at causes, signs and resamples."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl.activations import MeanActivations
from cosmic_tl.data.contrast_set import Prompts, sides_of
from cosmic_tl.directions.difference_in_means import difference_in_means
from cosmic_tl.engine import Outcome, Reading
from cosmic_tl.errors import CosmicError
from cosmic_tl.metrics.refusal_score import RefusalTokens, log_odds
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.forward import read
from cosmic_tl.model.hooks import Site
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.patching import Change, Patch, patched, unpatched
from cosmic_tl.selection.notes import ranking_warnings
from cosmic_tl.selection.options import CosmicOptions
from cosmic_tl.selection.resampling import draw_weights

MOST_PROMPTS = 64
"""Training prompts per side on which effects are measured."""
RESAMPLES = 1000
DOUBTS: dict[str | None, str] = {
    "causal": "exchanging the concept does not move the score towards the other class",
    "opposite-signs": "the means of both classes have the same sign",
}
"""What is wrong with a layer that a rule ranks first for want of a better one."""


def layer_similarity(positive: MeanActivations, negative: MeanActivations) -> Float64[Tensor, " layer"]:
    """Cosine between the classes' mean `y[l, -1]`, per layer.

    Example:
        >>> from cosmic_tl import load_model, mean_activations
        >>> means = mean_activations(load_model("demo", device="cpu"), ["hi"])
        >>> layer_similarity(means, means).round(decimals=6).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    return cosine_similarity(positive.resid_post[:, -1], negative.resid_post[:, -1], dim=-1)


def layers_apart(positive: MeanActivations, negative: MeanActivations) -> Float64[Tensor, " layer"]:
    """How far the origin lies between the classes, per layer: 0.5 half-way, above 0 in between, below 0 outside.

    Along the difference of the classes' mean `y[l, -1]`, from the nearer class. Above 0 their means have opposite signs, which
    Selective Steering (Dang and Ngo 2026) asks of layers to steer at.

    Example:
        >>> from cosmic_tl import load_model, mean_activations
        >>> model = load_model("demo", device="cpu")
        >>> one, other = (mean_activations(model, [text]) for text in ("Rob a clerk.", "Bake a pie."))
        >>> layers_apart(one, other).shape
        torch.Size([8])
    """
    mu, nu = positive.resid_post[:, -1], negative.resid_post[:, -1]
    difference = mu - nu
    origin = -(nu * difference).sum(-1) / difference.square().sum(-1)  # 0 at the negative class, 1 at the positive one
    return torch.minimum(origin, 1 - origin)


@checked
def layer_effects(
    model: TransformerBridge,
    prompts: Prompts,
    means: tuple[MeanActivations, MeanActivations],
    tokens: RefusalTokens,
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> Float64[Tensor, " layer"]:
    """What the concept at each layer's last token does to the next token: change of the refusal score towards the other class.

    The component of `y[l, -1]` along the layer's own difference in means is exchanged for the other class's mean, on both sides,
    and the mean of the two sides' changes is given. What leaves the last layer is not exchanged: it has no layer to act on.

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set, whose first training prompts are taken (at most 64 per side), or a pair of lists.
        means: Both classes' means, as from `class_means`.
        tokens: Whose log-odds are the refusal score.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows per forward pass. Default: by available memory.

    Raises:
        CosmicError: If the prompts are empty.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.activations import class_means
        >>> from cosmic_tl.metrics import refusal_tokens
        >>> model, sides = load_model("demo", device="cpu"), (["Rob a bank clerk."], ["Bake a pizza."])
        >>> found = layer_effects(model, sides, class_means(model, sides), refusal_tokens(model, ["I'm sorry"]))
        >>> found.shape, found[-1].isnan().item()
        (torch.Size([8]), True)
    """
    rows = [tokenize(model, side[:MOST_PROMPTS], chat) for side in sides_of(prompts, "train")]
    everything, groups = [*rows[0], *rows[1]], [0] * len(rows[0]) + [1] * len(rows[1])
    mu, nu = (side.resid_post[:, -1] for side in means)
    units = normalize(mu - nu, dim=-1)
    # What leaves a layer is what enters the next one.
    patches = [
        Patch(-1, (Change(layer + 1, "stream", torch.stack([nu[layer], mu[layer]]), units[layer]),))
        for layer in range(len(units) - 1)
    ]

    def score(outcome: Outcome) -> Tensor:
        assert outcome.logits is not None
        return log_odds(outcome.logits.cpu(), tokens.ids)

    reading = Reading(logits=True)
    before = unpatched(model, everything, reading, score, batch_size=batch_size)
    positive = torch.tensor(groups) == 0
    found = torch.full((len(units),), torch.nan, dtype=torch.float64)
    with track(len(patches), "layers") as advance:
        for layer, after in patched(model, everything, patches, reading, score, groups=groups, batch_size=batch_size):
            change = after - before
            found[layer] = (change[~positive].mean() - change[positive].mean()) / 2
            advance(1)
    return found


@checked
def layer_wins(
    model: TransformerBridge,
    prompts: Prompts,
    n_layers: int,
    *,
    first: int = 0,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> Float64[Tensor, " layer"]:
    """How often each layer is among those where the classes differ most, over resamples of the training prompts.

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set, whose training prompts are taken, or a pair of lists.
        n_layers: How many layers are picked.
        first: The lowest layer that takes part. Default 0.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by available memory.
        seed: Of the resamples. Default 0.

    Raises:
        CosmicError: If the prompts are empty.

    Example:
        >>> from cosmic_tl import load_model
        >>> sides = ["Rob a bank clerk.", "Rob a shop."], ["Bake a pizza.", "Bake a pie."]
        >>> float(layer_wins(load_model("demo", device="cpu"), sides, 2).sum())
        2.0
    """
    depth = int(model.cfg.n_layers)
    sites: list[tuple[int, Site]] = [(layer, "hook_resid_post") for layer in range(depth)]
    streams = []
    for side in sides_of(prompts, "train"):
        found = torch.empty(depth, len(side), int(model.cfg.d_model))
        for batch in batches(model, tokenize(model, side, chat), batch_size):
            read_at = read(model, batch, sites)
            found[:, list(batch.rows)] = torch.stack([read_at[site][:, -1].float().cpu() for site in sites])
        streams.append(found)
    drawn = draw_weights(streams[0].shape[1], streams[1].shape[1], RESAMPLES, seed)
    weights = drawn.positive[drawn.drawn], drawn.negative[drawn.drawn]
    similarity = torch.empty(RESAMPLES, depth, dtype=torch.float64)
    for layer in range(depth):
        mu, nu = (w @ side[layer].double() for w, side in zip(weights, streams, strict=True))
        similarity[:, layer] = cosine_similarity(mu, nu, dim=-1)
    similarity[:, :first] = torch.inf
    lowest = similarity.argsort(dim=1, stable=True)[:, :n_layers]
    return torch.bincount(lowest.flatten(), minlength=depth).double() / RESAMPLES


def evaluation_layers(
    similarity: Float[Tensor, " layer"] | Float64[Tensor, " layer"],
    share: float = 0.1,
    exclude_first_half: bool = False,
) -> tuple[int, ...]:
    """The layers where the classes differ most: the lowest `max(1, floor(share · n_layers))` similarities.

    Args:
        similarity: From `layer_similarity`.
        share: Of the layers to keep. Default 0.1.
        exclude_first_half: Rank only the second half of the layers.

    Example:
        >>> import torch
        >>> evaluation_layers(torch.tensor([0.9, 0.2, 0.5, 0.4]), share=0.5)
        (1, 3)
        >>> evaluation_layers(torch.tensor([0.9, 0.2, 0.5, 0.4]), exclude_first_half=True)
        (3,)
    """
    n_layers = len(similarity)
    first = n_layers // 2 if exclude_first_half else 0
    ranked = sorted(range(first, n_layers), key=lambda layer: (float(similarity[layer]), layer))
    return tuple(sorted(ranked[: max(1, int(share * n_layers + 1e-9))]))


def layers_by_rule(
    model: TransformerBridge,
    options: CosmicOptions,
    means: tuple[MeanActivations, MeanActivations],
    train: Prompts | None,
    tokens: RefusalTokens | None,
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The evaluation layers that a selection's options ask for, by name or by rule, and what is doubtful about them.

    Args:
        model: A `TransformerBridge`.
        options: The selection's.
        means: Both classes' training means.
        train: Training prompts, for the rules that look at them.
        tokens: Refusal tokens, for the rule that needs them.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows per forward pass. Default: by available memory.

    Raises:
        CosmicError: If the rule cannot be applied.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.activations import class_means
        >>> model, sides = load_model("demo", device="cpu"), (["Rob a bank clerk."], ["Bake a pizza."])
        >>> options = CosmicOptions(evaluation_layers=(6, 5))
        >>> layers_by_rule(model, options, class_means(model, sides), sides, None)
        ((5, 6), ())
    """
    asked = options.evaluation_layers
    if isinstance(asked, tuple):
        return asked, ()
    measure, doubts = layer_similarity(*means), []
    if asked == "causal":
        if tokens is None:
            raise CosmicError("evaluation_layers: 'causal' needs refusal tokens; give tokens, or another rule")
        assert train is not None
        measure = -layer_effects(model, train, means, tokens, chat=chat, batch_size=batch_size)
        measure = measure.nan_to_num(torch.inf)
    elif asked == "opposite-signs":
        measure = -layers_apart(*means)
    elif asked == "resampled":
        first = len(measure) // 2 if options.exclude_first_half else 0
        assert train is not None
        n_picked = len(evaluation_layers(measure, options.evaluation_share, options.exclude_first_half))
        measure = -layer_wins(model, train, n_picked, first=first, chat=chat, batch_size=batch_size)
    found = evaluation_layers(measure, options.evaluation_share, options.exclude_first_half)
    wrong = [str(layer) for layer in found if measure[layer] >= 0]
    if asked in DOUBTS and wrong:
        doubts.append(f"At evaluation layer{'s' * (len(wrong) > 1)} {', '.join(wrong)} {DOUBTS[asked]}.")
    return found, (*doubts, *ranking_warnings(difference_in_means(*means), found))
