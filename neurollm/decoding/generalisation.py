"""Does what is learnt in one domain hold in another? Train on one template, topic or language, test on the others.

The matrix of temporal generalisation (King & Dehaene 2014), with domains in place of time points; cross-classification
in the sense of Kaplan, Man & Greening (2015, Frontiers in Human Neuroscience 9:151).

All cells share one division of the items into folds, balanced over levels and domains. The classifier of domain a and
fold f is trained on the trials of a whose items are not in f, and tested on the trials of every domain whose items are
in f. So an item that occurs in both domains is never on both sides, cells of a row come from the same classifiers, and
every training set is the same share of its domain; the diagonal (a tested on a) is plain cross-validation. AUROC
compares trials of the same fold only; its interval is that of `neurollm.stats.paired_scores`.

A cell off the diagonal has three p values, two-sided, and the largest counts:

* labels are permuted by item, in all domains alike (`neurollm.decoding.permutation.label_draws`), and every
  classifier is trained again: nothing may look like that where labels mean nothing anywhere (exact);
* AUROC against one half by its standard error over items: that each domain has a code of its own does not make
  theirs a common one (permuted labels know nothing of the chance alignment of one strong code with another);
* the permutation p of the training domain on itself: a classifier of noise separates a domain with a strong code by
  accident, in one direction or the other.

In simulations (2 domains; 12 or 30 items with both levels, or per level; 3, 8 or 200 features; 60 data sets each) all
three together rejected in 0 to 5 % at a level of 5 % where each domain had a code of its own or one had none. The
first alone (3 or 8 features, both levels in an item) rejected in 8 to 18 % and in 32 to 68 %. Family-wise p: largest
statistic over the cells off the diagonal for the first, Holm for the second, largest statistic over the diagonal for
the third. AUROC clearly *below* one half in another domain says that the code is there, turned round. Intervals are
about items: they do not hold the chance alignment of codes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from neurollm.decoding.decoder import Decoder
from neurollm.decoding.panels import fit_part
from neurollm.decoding.permutation import label_draws
from neurollm.decoding.scores import fold_areas
from neurollm.decoding.trials import Trials, column, complete, matrix, typed
from neurollm.errors import InvalidInput
from neurollm.stats.arrays import take_rows
from neurollm.stats.folds import item_folds
from neurollm.stats.maxima import share, tied_down
from neurollm.stats.multiplicity import adjust
from neurollm.stats.paired_scores import auc_bootstrap
from neurollm.stats.threads import workers
from neurollm.validation import shortened, shown

if TYPE_CHECKING:
    import pandas as pd

Train = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Labels of all trials, rows to train on, rows to score → scores of these."""


@dataclass(frozen=True, eq=False)
class GeneralisationMatrix:
    """AUROC of every pair of training domain (rows) and test domain (columns).

    Attributes
    ----------
    domains : tuple of str, length D
    levels : tuple of str
        Low and high scores; AUROC is the chance that a trial of the second outranks one of the first.
    auroc, ci_low, ci_high, p : ndarray, shape (D, D)
        p: two-sided, uncorrected, see above (on the diagonal that of the permutations); NaN without permutations.
    p_fwer : ndarray, shape (D, D)
        Family-wise over the cells off the diagonal, and over those on it.
    n_items, n_trials : ndarray of int, shape (D,)
        Tested in each domain.
    n_shared : ndarray of int, shape (D, D)
        Items that occur in both domains, and were held out in turns.
    mean : float
        Mean AUROC off the diagonal.
    scores : ndarray, shape (D, n)
        Score of every trial by the classifiers of each domain.
    folds : ndarray of int, shape (n,)
        In which fold each trial was tested.
    n_perm : int
    alpha : float
    """

    domains: tuple[str, ...]
    levels: tuple[str, str]
    auroc: np.ndarray
    ci_low: np.ndarray
    ci_high: np.ndarray
    p: np.ndarray
    p_fwer: np.ndarray
    n_items: np.ndarray
    n_trials: np.ndarray
    n_shared: np.ndarray
    mean: float
    scores: np.ndarray
    folds: np.ndarray
    n_perm: int
    alpha: float

    def to_frame(self) -> pd.DataFrame:
        """One row per cell; columns train, test, auroc, ci_low, ci_high, p, p_fwer, n_items, n_trials, n_shared."""
        import pandas as pd

        size = len(self.domains)
        train, test = np.divmod(np.arange(size * size), size)
        names = np.array(self.domains, dtype=object)
        cells = {name: getattr(self, name).ravel() for name in ("auroc", "ci_low", "ci_high", "p", "p_fwer")}
        sizes = {"n_items": self.n_items[test], "n_trials": self.n_trials[test], "n_shared": self.n_shared.ravel()}
        return pd.DataFrame({"train": names[train], "test": names[test], **cells, **sizes})

    def verdict(self) -> str:
        """One sentence: how well the code carries over, and where it turns round."""
        off = ~np.eye(len(self.domains), dtype=bool)
        within = self.auroc.diagonal().mean()
        start = (
            f"Trained in one domain and tested in another, '{shortened(self.levels[1])}' outranks "
            f"'{shortened(self.levels[0])}' with a mean AUROC of {self.mean:.2f} (within a domain {within:.2f})"
        )
        if not self.n_perm:
            return f"{start}; no permutations were asked for, so nothing is said about chance."
        found = off & (self.p_fwer <= self.alpha)
        above, below = found & (self.auroc > 0.5), found & (self.auroc < 0.5)
        sentence = (
            f"{start}; {above.sum()} of {off.sum()} pairs of domains are above chance and "
            f"{below.sum()} below it (family-wise p ≤ {self.alpha:g})"
        )
        if below.any():
            a, b = np.unravel_index(np.argmin(np.where(below, self.auroc, np.inf)), below.shape)
            names = f"trained in '{shortened(self.domains[a])}', tested in '{shortened(self.domains[b])}'"
            sentence += f": below it the code is turned round ({names}: {self.auroc[a, b]:.2f})"
        return f"{sentence}."


def generalisation_matrix(
    decoder: Any,
    X: Any,
    labels: Any,
    groups: Any,
    domains: Any,
    *,
    cv: int = 5,
    n_perm: int = 200,
    n_boot: int = 2000,
    alpha: float = 0.05,
    random_state: int = 0,
    n_jobs: int = 1,
) -> GeneralisationMatrix:
    """Train a decoder in each domain and test it in all of them, on items it has not seen.

    Parameters
    ----------
    decoder : estimator of scikit-learn's kind
        A `Decoder`, of which each cell uses what it does in one training part (its own ``cv``, ``ensemble`` and
        ``n_perm`` do not matter here), or anything with ``fit(X, y)`` (``groups=`` is given where ``fit`` knows it),
        ``decision_function`` and ``classes_``. It is trained (n_perm + 1) × D × cv times.
    X : ndarray, scipy.sparse or AnnData, shape (n, V)
        With an AnnData the next three may be names of columns.
    labels : sequence, shape (n,)
        Exactly two levels.
    groups : sequence, shape (n,)
        Item of each trial.
    domains : sequence, shape (n,)
        Template, topic or any other column in which each trial has one value.
    cv : int, default=5
        Folds; fewer if a level has fewer items in a domain.
    n_perm : int, default=200
        0: no p values.
    n_boot : int, default=2000
    alpha : float, default=0.05
        Of the intervals (1 − α) and of the verdict.
    random_state : int, default=0
    n_jobs : int, default=1
        Threads over permutations; -1: one per core.

    Returns
    -------
    GeneralisationMatrix

    Raises
    ------
    DataMismatch
        The lengths differ.
    InvalidInput
        A value is missing, not two levels, fewer than two domains, fewer than two items of a level in a domain, a
        wrong option.

    Examples
    --------
    >>> from sklearn.linear_model import RidgeClassifier
    >>> rng, items = np.random.default_rng(0), np.arange(48) // 4
    >>> y, template = np.tile(["no", "yes"], 24), np.tile(["t1", "t1", "t2", "t2"], 12)
    >>> X = rng.normal(size=(48, 3)) + 9 * (y == "yes")[:, None] * np.where(template == "t1", 1, -1)[:, None]
    >>> generalisation_matrix(RidgeClassifier(), X, y, items, template, n_perm=0).auroc.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    X, labels, groups, items, codes, levels, names = _checked(X, labels, groups, domains, cv, n_perm)
    # Balanced over level × domain, so that every fold can be tested in every domain.
    n_folds = min(cv, _fewest_items(labels, items, codes, levels, names))
    folds = item_folds(2 * codes + labels, items, n_folds, random_state)
    train = _trainer(decoder, X, labels, groups, levels)
    trials = _Trials(labels, items, codes, folds)

    def areas(y: np.ndarray) -> np.ndarray:
        return np.nan_to_num(_cells(_scores(train, y, trials), y, trials), nan=0.5)

    draws, exhaustive = label_draws(labels.astype(int), items, n_perm, random_state) if n_perm else ([], False)
    with workers(n_jobs) as run:
        null = np.array(list(run(areas, [draw == 1 for draw in draws])))
    scores, boot = _scores(train, labels, trials), {"n_boot": n_boot, "random_state": random_state}
    auroc, low, high, p_half = _cell_statistics(scores, trials, alpha, boot)
    p, p_fwer = _p_values(auroc, null, p_half, exhaustive)
    mean = float(auroc[~np.eye(len(names), dtype=bool)].mean())
    occurs = np.zeros((len(names), items.max() + 1), int)
    occurs[codes, items] = 1
    sizes = (occurs.sum(axis=1), np.bincount(codes), occurs @ occurs.T)
    return GeneralisationMatrix(
        names, levels, auroc, low, high, p, p_fwer, *sizes, mean, scores, folds, len(null), alpha
    )


@dataclass(frozen=True, eq=False)
class _Trials:
    """Of each trial: label, item, domain and fold."""

    labels: np.ndarray
    items: np.ndarray
    codes: np.ndarray
    folds: np.ndarray


def _checked(X: Any, labels: Any, groups: Any, domains: Any, cv: int, n_perm: int) -> tuple[Any, ...]:
    """X, labels as booleans, items by name, items and domains as codes, names of the levels and of the domains."""
    where, given = "generalisation", {"labels": labels, "groups": groups, "domains": domains}
    values = matrix(X, where)
    labels, groups, domains = (
        complete(column(X, own, where), name, values.shape[0], where) for name, own in given.items()
    )
    labels, groups, domains = typed(labels), groups.astype(str), typed(domains)
    for name, value in (("cv", cv), ("n_perm", n_perm)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise InvalidInput(f"generalisation: {name} must be a whole number, found {shown(value)}.")
    levels, names = np.unique(labels), np.unique(domains)
    if levels.size != 2:
        raise InvalidInput(f"generalisation: exactly two levels can be decoded, found {levels.size}.")
    if names.size < 2:
        raise InvalidInput(f"generalisation: at least two domains are needed, found {names.size}.")
    if cv < 2 or n_perm < 0:
        raise InvalidInput(f"generalisation: at least 2 folds and 0 permutations are needed, found {cv} and {n_perm}.")
    items, codes = np.unique(groups, return_inverse=True)[1], np.unique(domains, return_inverse=True)[1]
    return values, labels == levels[1], groups, items, codes, tuple(map(str, levels)), tuple(map(str, names))


def _fewest_items(
    labels: np.ndarray, items: np.ndarray, codes: np.ndarray, levels: tuple[str, ...], names: tuple[str, ...]
) -> int:
    """Items of the rarest level in any domain."""
    counts = {
        (domain, level): np.unique(items[(codes == domain) & (labels == level)]).size
        for domain in range(len(names))
        for level in (0, 1)
    }
    (domain, level), fewest = min(counts.items(), key=lambda entry: entry[1])
    if fewest < 2:
        raise InvalidInput(
            f"generalisation: '{shortened(levels[level])}' needs at least 2 items in every domain, found {fewest} in "
            f"'{shortened(names[domain])}'."
        )
    return fewest


def _trainer(decoder: Any, X: Any, labels: np.ndarray, items: np.ndarray, levels: tuple[str, str]) -> Train:
    """A function that trains on some trials with any labels and scores other trials."""
    if isinstance(decoder, Decoder):
        trials = Trials.of(X, labels, items, None, "")
        plan = decoder._plan(trials)

        def panels(y: np.ndarray, seen: np.ndarray, unseen: np.ndarray) -> np.ndarray:
            return fit_part(_rows(trials.X, seen), y[seen], trials.items[seen], plan).decide(_rows(trials.X, unseen))

        return panels
    if not hasattr(decoder, "decision_function"):
        raise InvalidInput(f"decoder: {type(decoder).__name__} has no decision_function, which ranks the trials.")
    from sklearn.base import clone

    by_row = X.tocsr() if sparse.issparse(X) else X
    takes_groups = "groups" in inspect.signature(decoder.fit).parameters

    def estimator(y: np.ndarray, seen: np.ndarray, unseen: np.ndarray) -> np.ndarray:
        groups = {"groups": items[seen]} if takes_groups else {}
        model = clone(decoder).fit(by_row[seen], np.where(y[seen], levels[1], levels[0]), **groups)
        sign = 1 if str(model.classes_[1]) == levels[1] else -1
        return sign * np.asarray(model.decision_function(by_row[unseen]), float).reshape(unseen.size)

    return estimator


def _rows(X: Any, rows: np.ndarray) -> Any:
    return take_rows(X, rows) if sparse.issparse(X) else X[rows]


def _scores(train: Train, labels: np.ndarray, trials: _Trials) -> np.ndarray:
    """Scores (D, n) of all trials by the classifiers of each domain, each trained without the items it scores."""
    scores = np.zeros((trials.codes.max() + 1, labels.size))
    for domain, fold in np.ndindex(len(scores), int(trials.folds.max()) + 1):
        test = trials.folds == fold
        seen, unseen = np.flatnonzero((trials.codes == domain) & ~test), np.flatnonzero(test)
        if labels[seen].any() and not labels[seen].all():  # permuted labels can leave one level, and nothing to learn
            scores[domain, unseen] = train(labels, seen, unseen)
    return scores


def _cells(scores: np.ndarray, labels: np.ndarray, trials: _Trials) -> np.ndarray:
    """AUROC (D, D) over pairs of trials of the same test domain and fold."""
    found = np.empty((len(scores), len(scores)))
    for train, test in np.ndindex(found.shape):
        here = trials.codes == test
        found[train, test] = fold_areas(scores[train, here], labels[here], trials.folds[here])[0]
    return found


def _cell_statistics(scores: np.ndarray, trials: _Trials, alpha: float, boot: dict[str, int]) -> np.ndarray:
    """AUROC, both ends of its interval and its p against one half, (4, D, D)."""
    found = np.empty((4, len(scores), len(scores)))
    for test in range(len(scores)):
        here = trials.codes == test
        own = (scores[:, here], trials.labels[here], trials.items[here], trials.folds[here])
        areas = auc_bootstrap(*own, **boot)
        found[:, :, test] = areas.area, *areas.interval(alpha), areas.p_chance()
    return found


def _p_values(
    auroc: np.ndarray, null: np.ndarray, p_half: np.ndarray, exhaustive: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Uncorrected and family-wise p of every cell."""
    if not len(null):
        return np.full(auroc.shape, np.nan), np.full(auroc.shape, np.nan)
    off = ~np.eye(len(auroc), dtype=bool)
    # The observed arrangement counts like any other, so that it is exchangeable with them.
    everything = null if exhaustive else np.concatenate([null, auroc[None]])
    centre, spread = everything.mean(axis=0), np.maximum(everything.std(axis=0), 1e-9)
    observed, drawn = tied_down(np.abs(auroc - centre) / spread), np.abs(null - centre) / spread

    def p_of(drawn: np.ndarray) -> np.ndarray:
        return share((drawn >= observed).sum(axis=0), len(null), exhaustive)

    alone = p_of(drawn)
    largest = [p_of(drawn[:, part].max(axis=1)[:, None, None]) for part in (off, ~off)]
    p = np.where(off, np.maximum(np.maximum(alone, p_half), alone.diagonal()[:, None]), alone)
    half = np.zeros(auroc.shape)
    half[off] = adjust(p_half[off], "holm")
    gate = largest[1].diagonal()[:, None]
    return p, np.where(off, np.maximum(np.maximum(largest[0], half), gate), largest[1])
