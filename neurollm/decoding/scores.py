"""How good out-of-fold decisions are: AUROC within folds, balanced accuracy, and their intervals over items.

In simulations (8, 10, 20 and 40 items, with both classes each or one; noise, or a signal of AUROC .65, .71, .76 or .99;
100 data sets each; a ridge classifier on 4 of 30 features chosen inside the folds) 95 to 99 % of the intervals of AUROC
and all of balanced accuracy held the mean over data sets; on noise 1 to 3 % of the former lay above .5.
"""

from __future__ import annotations

import numpy as np

from neurollm.random import stream
from neurollm.stats.auc import concordance

N_BOOT = 2000


def fold_areas(
    scores: np.ndarray, labels: np.ndarray, folds: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """AUROC over pairs within folds: concordant pairs of all folds over pairs of all folds.

    Parameters
    ----------
    scores : ndarray, shape (n,)
    labels : ndarray of bool, shape (n,)
    folds : ndarray, shape (n,)
    weights : ndarray, shape (B, n), optional
        Of each trial; one area for each row. Default: one row of ones.

    Returns
    -------
    ndarray, shape (B,)
        NaN where no fold holds both classes.

    Examples
    --------
    >>> labels, folds = np.array([True, False, True, False]), np.array([0, 0, 1, 1])
    >>> fold_areas(np.array([0.1, 0.0, 0.9, 0.8]), labels, folds).tolist()
    [1.0]
    """
    weights = np.ones((1, labels.size)) if weights is None else weights
    concordant, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for fold in np.unique(folds):
        here = folds == fold
        more, all_pairs = concordance(scores[here], labels[here], weights[:, here])
        concordant, pairs = concordant + more, pairs + all_pairs
    return np.divide(concordant, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def one_against_rest(codes: np.ndarray, n_classes: int) -> list[np.ndarray]:
    """What is looked for in each problem: the second of two classes, or each of several."""
    return [codes == 1] if n_classes == 2 else [codes == number for number in range(n_classes)]


def mean_area(decisions: np.ndarray, codes: np.ndarray, folds: np.ndarray, n_classes: int) -> float:
    """AUROC within folds, the mean over classes if there are more than two.

    Parameters
    ----------
    decisions : ndarray, shape (n, n_problems)
        A column for each problem of `one_against_rest`.
    codes, folds : ndarray of int, shape (n,)
    n_classes : int

    Returns
    -------
    float
        NaN where no fold holds both sides of a problem.
    """
    problems = one_against_rest(codes, n_classes)
    return float(np.mean([fold_areas(decisions[:, place], y, folds)[0] for place, y in enumerate(problems)]))


def cautious_interval(estimate: float, variance: float, n_most: int) -> tuple[float, float]:
    """Wilson's 95 % interval with t quantiles, never a single point.

    Parameters
    ----------
    estimate : float
        A share, such as an AUROC.
    variance : float
        Of the estimate over items, from a jackknife or bootstrap; it cannot see that the classifiers vary, too.
    n_most : int
        Largest number of observations that the estimate may count as: few items without an error have no variance.

    Returns
    -------
    low, high : float

    Examples
    --------
    >>> [round(limit, 2) for limit in cautious_interval(1.0, 0.0, 20)]
    [0.82, 1.0]
    """
    from scipy.stats import t as student

    spread = estimate * (1 - estimate)
    n = min(n_most, spread / variance) if spread > 0 and variance > 0 else n_most
    z2 = float(student.ppf(0.975, max(n_most - 1, 1))) ** 2
    centre, half = estimate + z2 / (2 * n), np.sqrt(z2 * (spread / n + z2 / (4 * n**2)))
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    return float(max(min(low, estimate), 0.0)), float(min(max(high, estimate), 1.0))


def n_item_pairs(labels: np.ndarray, items: np.ndarray, folds: np.ndarray) -> int:
    """Comparisons within folds that share no item: items with both levels, and pairs of items with one each."""
    total = 0
    for fold in np.unique(folds):
        here = folds == fold
        positive, negative = set(items[here & labels]), set(items[here & ~labels])
        total += len(positive & negative) + min(len(positive - negative), len(negative - positive))
    return max(total, 1)


def area_interval(
    decisions: np.ndarray, codes: np.ndarray, items: np.ndarray, folds: np.ndarray, n_classes: int, random_state: int
) -> tuple[float, float]:
    """95 % interval of `mean_area` from 2,000 resamples of items, by `cautious_interval`.

    With more than two classes the limits are the means of the classes' limits: right if the classes err
    together, else too wide.
    """
    limits = []
    for place, y in enumerate(one_against_rest(codes, n_classes)):
        area = float(fold_areas(decisions[:, place], y, folds)[0])
        variance = float(np.nanvar(_resampled_areas(decisions[:, place], y, items, folds, random_state), ddof=1))
        limits.append(cautious_interval(area, variance, n_item_pairs(y, items, folds)))
    low, high = np.mean(limits, axis=0)
    return float(low), float(high)


def _resampled_areas(
    scores: np.ndarray, labels: np.ndarray, items: np.ndarray, folds: np.ndarray, random_state: int
) -> np.ndarray:
    """AUROC of resamples of items, shape (N_BOOT,).

    Pairs of two items weigh w_i w_j and pairs within an item w_i: two copies of an item are not compared.
    """
    weights = _resamples(np.stack([labels, ~labels], axis=1), items, random_state)
    concordant, pairs = np.zeros(N_BOOT), np.zeros(N_BOOT)
    again = weights**2 - weights
    for fold in np.unique(folds):
        here = np.flatnonzero(folds == fold)
        more, all_pairs = concordance(scores[here], labels[here], weights[:, items[here]])
        concordant, pairs = concordant + more, pairs + all_pairs
        for item in np.intersect1d(items[here][labels[here]], items[here][~labels[here]]):
            own = here[items[here] == item]
            more, all_pairs = concordance(scores[own], labels[own], np.ones((1, own.size)))
            concordant, pairs = concordant - again[:, item] * more, pairs - again[:, item] * all_pairs
    return np.divide(concordant, pairs, out=np.full(N_BOOT, np.nan), where=pairs > 0)


def _resamples(member: np.ndarray, items: np.ndarray, random_state: int) -> np.ndarray:
    """How often each item occurs in each resample, (N_BOOT, n_items); items with the same classes keep their number.

    `member` (n, n_classes) says which class a trial is of.
    """
    has = np.zeros((int(items.max()) + 1, member.shape[1]), dtype=int)
    np.add.at(has, items, member)
    kinds = np.unique(has > 0, axis=0, return_inverse=True)[1].ravel()
    rng = stream(random_state, "item_bootstrap")
    weights = np.zeros((N_BOOT, len(has)))
    for kind in np.unique(kinds):
        own = np.flatnonzero(kinds == kind)
        weights[:, own] = rng.multinomial(own.size, np.full(own.size, 1 / own.size), N_BOOT)
    return weights


def balanced_accuracy(correct: np.ndarray, codes: np.ndarray, n_classes: int) -> float:
    """Mean over classes of the share of a class's trials that is recognised (Brodersen et al. 2010)."""
    return float(np.mean([correct[codes == number].mean() for number in range(n_classes)]))


def balanced_accuracy_interval(
    correct: np.ndarray, codes: np.ndarray, items: np.ndarray, n_classes: int, random_state: int
) -> tuple[float, float]:
    """95 % interval of `balanced_accuracy` from 2,000 resamples of items with the same classes, likewise."""
    member = codes[:, None] == np.arange(n_classes)
    weights = _resamples(member, items, random_state)
    counts, right = np.zeros((weights.shape[1], n_classes)), np.zeros((weights.shape[1], n_classes))
    np.add.at(counts, items, member)
    np.add.at(right, items, member & correct[:, None])
    seen = weights @ counts
    recalls = np.divide(weights @ right, seen, out=np.full(seen.shape, np.nan), where=seen > 0)
    variance = float(np.nanvar(recalls.mean(axis=1), ddof=1))
    n_most = int(min((counts > 0).sum(axis=0)))  # items of the rarest class
    return cautious_interval(balanced_accuracy(correct, codes, n_classes), variance, n_most)


def jaccard(panels: list[np.ndarray], n_available: int) -> tuple[float, float]:
    """How alike the panels of the folds are, and how alike random ones would be.

    Parameters
    ----------
    panels : list of ndarray
        Features of each fold.
    n_available : int
        Features there are to choose from.

    Returns
    -------
    observed, chance : float
        Means over pairs of folds of ``|A ∩ B| / |A ∪ B|``; the second is its expectation if each panel were drawn
        at random from all features (the overlap is hypergeometric). NaN with fewer than two panels, or empty ones.

    Examples
    --------
    >>> jaccard([np.array([1, 2]), np.array([2, 3])], 4)
    (0.3333333333333333, 0.38888888888888884)
    """
    from scipy.stats import hypergeom

    observed, chance, by_sizes = [], [], {}
    for place, one in enumerate(panels):
        for other in panels[:place]:
            if not (one.size and other.size):
                continue
            both = np.intersect1d(one, other).size
            observed.append(both / (one.size + other.size - both))
            sizes = one.size, other.size
            if sizes not in by_sizes:
                overlap = np.arange(min(sizes) + 1)
                by_sizes[sizes] = hypergeom(n_available, *sizes).pmf(overlap) @ (overlap / (sum(sizes) - overlap))
            chance.append(by_sizes[sizes])
    return (float(np.mean(observed)), float(np.mean(chance))) if observed else (float("nan"), float("nan"))
