r"""Differences between the methods of a grid, over everything that both sides have in common.

A contrast compares two sets of selectors, or two sets of representations. Its value for a concept is the mean of one
side minus the mean of the other, in AUROC, over all settings (representation or selector, and k) in which every member
of both sides has scores. Overall it is the mean over concepts.

AUROC compares trials of the same test fold, and a bootstrap replicate weights the pairs of items in it, as in
`neurollm.stats.paired_scores`. All methods of a repetition have the same folds, hence the same pairs, so that a
contrast of AUROCs is the AUROC of the contrast of their concordant pairs: one weighted sum for any number of methods.
Items are resampled together for all methods, and for the concepts that share their sentences. With D the contribution
of a set of such concepts (the sum of their differences divided by the number of all concepts), u items and k folds

    se² = Σ_sets max[(V + k/(k − 1) · V₁) · u/(u − 1),  s² ρ/(u + 2)²],      D ± t(ν) se,

V the bootstrap variance of D averaged over repetitions, V₁ its mean variance in a single repetition, and ν from the
sets' degrees of freedom u − 1 (Welch–Satterthwaite). The second term stands for the training parts, which the
resampling of test items cannot see (Nadeau & Bengio 2003).

The last one is a lower limit, without which items that all say the same have an interval of no width. Half an item in
each direction makes it 1/(u + 2)² for two methods, as in `neurollm.stats.paired_scores`. s is the set's share of the
concepts, and ρ, from 1/S to 1, is what averaging the S settings of the set leaves of it: the bootstrap variance of
their mean over the mean of their variances (1 if none varies, as if all were one). It is not added, because in
simulations the variance of an average was large enough (two equally good representations, nearest-mean classifiers
with 12 ways of choosing features in 5 folds, 14 or 24 items, AUROC .5 to .99: p ≤ .05 in 1.5 to 3.5 % of 400 data
sets). p is two-sided and never below 2^(1 − Σu). The concepts are those that were asked about:
the interval is over items and says nothing about other concepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from neurollm.random import stream
from neurollm.stats.multiplicity import adjust
from neurollm.stats.paired_scores import item_kinds, n_units, resampled_items

_ELEMENTS = 1 << 22  # numbers in one block of the products
_NONE = 1e-20  # variance of rounding
RSA = ("rsa_categorical", "rsa_discriminative", "rsa_coherence")
Method = tuple[str, str, int]
"""(representation, selector, k)"""
_AXES = {"representation": 0, "selector": 1, "k": 2}


@dataclass(frozen=True)
class GridContrast:
    """A comparison of two sets of methods.

    Attributes
    ----------
    name : str
    axis : {"selector", "representation"}
        What is compared; everything else is averaged over.
    plus, minus : tuple of str
    within : mapping
        Restriction of the other axes, e.g. ``{"representation": "sae"}`` or ``{"k": 8}``.
    claim : str
        What a positive difference says; only for those declared beforehand.
    """

    name: str
    axis: Literal["selector", "representation"]
    plus: tuple[str, ...]
    minus: tuple[str, ...]
    within: Mapping[str, Any] = field(default_factory=dict)
    claim: str = ""

    def weights(self, methods: Sequence[Method], has_scores: np.ndarray) -> np.ndarray | None:
        """Weight of each method in each setting, or None if the two sides have no setting in common.

        Parameters
        ----------
        methods : sequence of (representation, selector, k)
        has_scores : ndarray of bool, shape (M,)

        Returns
        -------
        ndarray, shape (S, M), or None
            A row for each setting, whose positive weights sum to 1 and the others to −1.

        Examples
        --------
        >>> methods = [("sae", "auroc", 1), ("raw", "auroc", 1), ("sae", "auroc", 2)]
        >>> GridContrast("", "representation", ("sae",), ("raw",)).weights(methods, np.ones(3, bool)).tolist()
        [[1.0, -1.0, 0.0]]
        """
        axis = _AXES[self.axis]
        found: dict[tuple, dict[str, int]] = {}
        for place, method in enumerate(methods):
            kept = all(method[_AXES[name]] == value for name, value in self.within.items())
            if has_scores[place] and kept and method[axis] in (*self.plus, *self.minus):
                found.setdefault(method[:axis] + method[axis + 1 :], {})[method[axis]] = place
        shared = [members for members in found.values() if len(members) == len(self.plus) + len(self.minus)]
        if not shared:
            return None
        weights = np.zeros((len(shared), len(methods)))
        for row, members in zip(weights, shared, strict=True):
            for name, place in members.items():
                row[place] = 1 / len(self.plus) if name in self.plus else -1 / len(self.minus)
        return weights


PREREGISTERED = (
    GridContrast(
        "RSA − maximum activation",
        "selector",
        RSA,
        ("maximum_activation",),
        claim="RSA chooses better features than maximum activation",
    ),
    GridContrast(
        "SAE − raw units", "representation", ("sae",), ("raw_units",), claim="SAE features are better than raw units"
    ),
    GridContrast(
        "discriminative − categorical RSA",
        "selector",
        ("rsa_discriminative",),
        ("rsa_categorical",),
        claim="discriminative RSA chooses better features than categorical RSA",
    ),
)
"""Declared before the data were seen; averaged over all k. Holm's correction is over these three."""


def exploratory(representations: Sequence[str], selectors: Sequence[str], sizes: Sequence[int]) -> list[GridContrast]:
    """Further comparisons of a grid, none of them declared beforehand."""
    maximum = ("maximum_activation",)
    found = [GridContrast(f"{one} − maximum_activation", "selector", (one,), maximum) for one in selectors]
    found += [
        GridContrast(f"rsa_categorical − {one}", "selector", ("rsa_categorical",), (one,))
        for one in ("mean_difference", "welch_t", "auroc", "l1_path", "random")
        if one in selectors
    ]
    found += [GridContrast(f"sae − {one}", "representation", ("sae",), (one,)) for one in representations]
    for one in representations:
        for declared in (PREREGISTERED[0], PREREGISTERED[2]):
            found.append(GridContrast(f"{declared.name}, in {one}", "selector", declared.plus, declared.minus,
                                      {"representation": one}))  # fmt: skip
    for size in sizes:
        found.append(GridContrast(f"SAE − raw units, k = {size}", "representation", ("sae",), ("raw_units",),
                                  {"k": size}))  # fmt: skip
    return [one for one in found if set(one.plus).isdisjoint(one.minus)]


@dataclass(frozen=True, eq=False)
class ConceptPairs:
    """Concordant pairs of all methods for one concept; made by `concept_pairs`.

    Attributes
    ----------
    concept : str
    materials : str
        The sentences and their items: concepts with the same ones are resampled together.
    methods : list of (representation, selector, k)
    has_scores : ndarray of bool, shape (M,)
    places : list of ndarray of int, shape (2, q)
        Of each repetition: items (of the positive, of the negative trials) that are in the same fold.
    concordant : list of ndarray, shape (M, q)
        Pairs of trials in which the positive one scores higher, ties one half.
    pairs : list of ndarray, shape (q,)
        All pairs of trials.
    kinds : ndarray of int, shape (n_items,)
        As from `neurollm.stats.paired_scores.item_kinds`.
    n_folds : int
    """

    concept: str
    materials: str
    methods: list[Method]
    has_scores: np.ndarray
    places: list[np.ndarray]
    concordant: list[np.ndarray]
    pairs: list[np.ndarray]
    kinds: np.ndarray
    n_folds: int

    def differences(self, weights: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Differences of AUROCs, observed and for bootstrap weights of items.

        Parameters
        ----------
        weights : ndarray, shape (S, M)
            Of the methods, a row for each setting.
        draws : ndarray, shape (n_boot, n_items)

        Returns
        -------
        ndarray, shape (R, S, 1 + n_boot)
        """
        used = np.flatnonzero(weights.any(axis=0))
        found = []
        for (first, second), concordant, pairs in zip(self.places, self.concordant, self.pairs, strict=True):
            mixed = (weights[:, used] @ concordant[used]).T
            parts = [mixed.sum(axis=0, keepdims=True) / pairs.sum()]
            for rows in np.array_split(draws, max(1, draws.shape[0] * pairs.size // _ELEMENTS)):
                weight = np.where(first == second, rows[:, first], rows[:, first] * rows[:, second])
                total = (weight @ pairs)[:, None]
                # A replicate in which every fold lost a level says nothing: it keeps the estimate.
                parts.append(np.where(total > 0, weight @ mixed / np.where(total > 0, total, 1), parts[0]))
            found.append(np.concatenate(parts).T)
        return np.array(found)


def concept_pairs(
    concept: str,
    materials: str,
    methods: list[Method],
    scores: np.ndarray,
    labels: np.ndarray,
    items: np.ndarray,
    folds: np.ndarray,
) -> ConceptPairs:
    """Count the concordant pairs of items.

    Parameters
    ----------
    concept, materials, methods
        As in `ConceptPairs`.
    scores : ndarray, shape (M, R, n)
        Out of fold; NaN throughout for methods without scores.
    labels, items : ndarray, shape (n,)
    folds : ndarray of int, shape (R, n)

    Returns
    -------
    ConceptPairs
    """
    codes = np.unique(items, return_inverse=True)[1]
    places, concordant, pairs = [], [], []
    for r, fold_of in enumerate(folds):
        parts = [_fold_pairs(scores[:, r], labels, codes, fold_of == fold) for fold in np.unique(fold_of)]
        places.append(np.concatenate([part[0] for part in parts], axis=1))
        concordant.append(np.concatenate([part[1] for part in parts], axis=1))
        pairs.append(np.concatenate([part[2] for part in parts]))
    return ConceptPairs(
        concept,
        materials,
        methods,
        np.isfinite(scores).all(axis=(1, 2)),
        places,
        concordant,
        pairs,
        item_kinds(labels, codes),
        min(np.unique(row).size for row in folds),
    )


def _fold_pairs(
    scores: np.ndarray, labels: np.ndarray, codes: np.ndarray, here: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of items of one fold: places (2, q), concordant (M, q), all (q,)."""
    items = np.unique(codes[here])
    owners = [(codes[here & (labels == side)] == items[:, None]).astype(np.float32) for side in (True, False)]
    higher, lower = (scores[:, here & (labels == side)] for side in (True, False))
    wins = (higher[:, :, None] > lower[:, None]) + np.float32(0.5) * (higher[:, :, None] == lower[:, None])
    counts = owners[0] @ wins.astype(np.float32) @ owners[1].T  # whole and half numbers: exact in float32
    first, second = np.indices((items.size, items.size)).reshape(2, -1)
    pairs = owners[0].sum(axis=1)[first] * owners[1].sum(axis=1)[second]
    return np.stack([items[first], items[second]]), counts.reshape(len(scores), -1), pairs.astype(float)


@dataclass(frozen=True, eq=False)
class _Difference:
    """One contrast of one concept: values of repetitions and settings, observed and replicates, (R, S, 1 + n_boot)."""

    values: np.ndarray
    concept: ConceptPairs


def compare(
    concepts: Sequence[ConceptPairs], contrasts: Sequence[GridContrast], *, n_boot: int = 2000, random_state: int = 0
) -> list[dict[str, Any]]:
    """Evaluate contrasts for each concept and overall.

    Parameters
    ----------
    concepts : sequence of ConceptPairs
    contrasts : sequence of GridContrast
    n_boot : int, default=2000
    random_state : int, default=0

    Returns
    -------
    list of dict
        Per contrast: ``name``, ``claim``, ``overall`` and ``concepts``; each value with ``difference``, ``ci_low``,
        ``ci_high``, ``p``, and ``concepts`` also with ``concept``. A contrast without a setting in common is left out;
        the mean is over the concepts that have one.
    """
    draws = {
        one.materials: resampled_items(one.kinds, n_boot, stream(random_state, "grid_bootstrap")) for one in concepts
    }
    found = []
    for contrast in contrasts:
        differences = []
        for one in concepts:
            weights = contrast.weights(one.methods, one.has_scores)
            if weights is not None:
                differences.append(_Difference(one.differences(weights, draws[one.materials]), one))
        if differences:
            found.append(
                {
                    "name": contrast.name,
                    "claim": contrast.claim,
                    "overall": _summary(differences),
                    "concepts": [{"concept": one.concept.concept} | _summary([one]) for one in differences],
                }
            )
    return found


def holm(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add Holm's ``p_holm`` over the overall p values of these contrasts."""
    adjusted = adjust(np.array([result["overall"]["p"] for result in results]), "holm")
    return [
        result | {"overall": result["overall"] | {"p_holm": float(p)}}
        for result, p in zip(results, adjusted, strict=True)
    ]


def _summary(differences: list[_Difference]) -> dict[str, float]:
    """Mean over concepts, with interval and p."""
    from scipy.stats import t as student

    by_materials: dict[str, list[_Difference]] = {}
    for one in differences:
        by_materials.setdefault(one.concept.materials, []).append(one)
    parts = [_variance(members, len(differences)) for members in by_materials.values()]
    variances, units = (np.array(part) for part in zip(*parts, strict=True))
    value = float(np.mean([one.values[:, :, 0].mean() for one in differences]))
    total = float(variances.sum())
    df, se = total**2 / np.sum(variances**2 / (units - 1)), np.sqrt(total)
    half = float(student.ppf(0.975, df) * se)
    p = float(np.clip(2 * student.sf(abs(value) / se, df), 2.0 ** (1 - units.sum()), 1))
    return {"difference": value, "ci_low": value - half, "ci_high": value + half, "p": p}


def _variance(members: list[_Difference], n_concepts: int) -> tuple[float, int]:
    """Variance of what the concepts of the same sentences contribute to the mean over concepts, and their units."""
    u, k = n_units(members[0].concept.kinds), min(one.concept.n_folds for one in members)
    share = len(members) / n_concepts
    together = share * np.mean([one.values[:, :, 1:].mean(axis=1) for one in members], axis=0)
    seen = np.var(together.mean(axis=0), ddof=1)
    training = k / (k - 1) * np.var(together, axis=1, ddof=1).mean()
    alone = [np.var(one.values[:, :, 1:].mean(axis=0), axis=1, ddof=1).mean() for one in members]
    n_settings = sum(one.values.shape[1] for one in members)
    # What averaging leaves of the variance of one setting; nothing can be said where none varies.
    left = max(seen / share**2 / np.mean(alone), 1 / n_settings) if max(alone) > _NONE else 1.0
    return float(max((seen + training) * u / (u - 1), share**2 * left / (u + 2) ** 2)), u
