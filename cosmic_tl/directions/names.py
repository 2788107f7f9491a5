"""The ways to make directions, by name."""

from collections.abc import Mapping, Sequence

from cosmic_tl.errors import CosmicError

GENERATORS: Mapping[str, str] = {
    "dim": "difference_in_means:mean_difference",
    "pca": "pca:principal_component",
    "paired-pca": "pca:paired_component",
    "lat": "lat:lat_direction",
    "probe": "probe:probe_direction",
    "lda": "whitened:discriminant",
    "leace": "whitened:leace_direction",
    "projected": "projected:projected_difference",
    "winsorized": "robust:winsorized_difference",
    "median": "robust:median_difference",
}
"""Name to file and function. A function takes the activations of positive and of negative prompts at one layer and position."""
DIM = "dim"
"""The papers' own. Its scores have no name of a generator in their keys."""
PAIRED = frozenset(["paired-pca"])
"""Those that take the members of pairs (`ContrastSet.contrast`)."""


def check_generators(names: Sequence[str]) -> tuple[str, ...]:
    """The names of some generators, which may also be given in one text, with commas between them.

    Raises:
        CosmicError: If there is none, one is unknown, or one stands twice.

    Example:
        >>> check_generators(["dim,pca"])
        ('dim', 'pca')
        >>> check_generators(["pda"])
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: directions: unknown generator 'pda'; use some of dim, pca, ...
    """
    found = tuple(name.strip() for text in names for name in text.split(","))
    known = ", ".join(GENERATORS)
    if not found:
        raise CosmicError(f"directions: found none; use some of {known}")
    for name in found:
        if name not in GENERATORS:
            raise CosmicError(f"directions: unknown generator {name!r}; use some of {known}")
        if found.count(name) > 1:
            raise CosmicError(f"directions: {name!r} stands {found.count(name)} times; name it once")
    return found
