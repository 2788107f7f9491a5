"""Effects of many places, with intervals over the prompts, and the share of them that the direction mediates."""

from collections.abc import Mapping, Sequence
from math import nan

import numpy as np
import pandas as pd
from jaxtyping import Float64
from torch import Tensor

DIRECTION, PLACEBO, WHOLE = "direction", "placebo", "whole"
RESAMPLES = 1000
"""Of the prompts, for the intervals."""
Place = tuple[int, ...]
"""Layer and position, and the head if single ones are exchanged."""
COLUMNS = ("layer", "position", "head")


def resamples(n: int, seed: int) -> np.ndarray:
    """Weights of `n` prompts in each of the resamples, `[resample, prompt]`.

    Example:
        >>> resamples(4, seed=0).shape
        (1000, 4)
    """
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES) / n


def interval(drawn: np.ndarray) -> np.ndarray:
    """Both ends of the 95 % interval, over the first axis.

    Example:
        >>> interval(np.arange(101)).tolist()
        [2.5, 97.5]
    """
    ends: np.ndarray = np.quantile(drawn, (0.025, 0.975), axis=0)
    return ends


def summarized(
    effects: Mapping[tuple[str, Place], Float64[Tensor, "prompt measure"]], names: Sequence[str], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Effects and shares with 95 % intervals, from the same resamples of the prompts."""
    weights = resamples(len(next(iter(effects.values()))), seed)
    rows, shares = [], []
    drawn = {key: weights @ values.numpy() for key, values in effects.items()}
    for (treatment, where), values in effects.items():
        mean, around = values.mean(0), interval(drawn[treatment, where])
        for m, name in enumerate(names):
            place = {"measure": name, **dict(zip(COLUMNS, where, strict=False))}
            rows.append(
                {**place, "treatment": treatment}
                | {"effect": float(mean[m]), "low": float(around[0, m]), "high": float(around[1, m])}
            )
            if treatment == WHOLE:
                share = _share(
                    float(effects[DIRECTION, where][:, m].mean()),
                    float(mean[m]),
                    drawn[DIRECTION, where][:, m],
                    drawn[WHOLE, where][:, m],
                )
                shares.append({**place, **dict(zip(("share", "low", "high"), share, strict=True))})
    empty = pd.DataFrame(columns=["measure", *COLUMNS[:2], "share", "low", "high"])
    return pd.DataFrame(rows), pd.DataFrame(shares) if shares else empty


def _share(along: float, whole: float, along_drawn: np.ndarray, whole_drawn: np.ndarray) -> tuple[float, float, float]:
    low, high = interval(whole_drawn)
    if low <= 0 <= high or low == high:  # of one prompt nothing can be said
        return nan, nan, nan
    around = interval(along_drawn / whole_drawn)
    return along / whole, float(around[0]), float(around[1])
