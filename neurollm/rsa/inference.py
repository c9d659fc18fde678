"""Which model RDM explains a set of data RDMs best, for new stimuli, new models or both.

The resampling, the noise ceilings and the variances are rsatoolbox's (Schütt, Kipnis, Diedrichsen & Kriegeskorte 2023,
eLife 82566). What is random decides what may be concluded:

==============  =============================================================  =====================================
resample        the result holds for                                           standard error from
==============  =============================================================  =====================================
``conditions``  new stimuli, with these same RDMs                              bootstrap of conditions
``rdms``        new seeds, models or dictionaries, with these same stimuli     bootstrap of RDMs
``both``        both at once                                                   dual bootstrap with its correction
``none``        new seeds, models or dictionaries, with these same stimuli     differences between the RDMs (t test)
==============  =============================================================  =====================================

The dual bootstrap (V_both, V_rdm and V_cond from the same samples) takes out the part of V_both that both factors count
twice: with n RDMs and m conditions

    V = n/(n−1) V_rdm + m/(m−1) V_cond − nm/((n−1)(m−1)) (V_both − V_rdm − V_cond),

at least each of the first two and at most V_both. Groups of conditions (items) or of RDMs count once in n, m and the
degrees of freedom.

rsatoolbox draws from numpy's global random state. It is seeded from `random_state` for the time of the call and put
back afterwards, so calls from several threads wait for each other.
"""

from __future__ import annotations

import itertools
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.progress import Progress
from neurollm.random import stream
from neurollm.rsa.comparators import WHITENED, Comparison, check_comparison, compare_rdms, varies, whitened_cosine
from neurollm.rsa.comparison import POPULATIONS, ModelComparison
from neurollm.rsa.tables import Tables, tables
from neurollm.stats.multiplicity import adjust
from neurollm.validation import listed, shown

if TYPE_CHECKING:
    from rsatoolbox.rdm import RDMs

Resample = Literal["conditions", "rdms", "both", "none"]
_FEWEST = 4  # units to resample: with three, a ninth of all samples hold a single one
_FITTED = ("pearson", "cosine")
_LOCK = threading.Lock()


def compare_models(
    data_rdms: RDMs,
    models: Any,
    comparison: Comparison,
    resample: Resample,
    *,
    condition_groups: str | Sequence[Any] | None = None,
    rdm_groups: str | Sequence[Any] | None = None,
    n_boot: int = 1000,
    test: Literal["t", "percentile"] = "t",
    correction: Literal["holm", "bh"] = "holm",
    alpha: float = 0.05,
    random_state: int = 0,
    verbose: int = 1,
) -> ModelComparison:
    """Compare model RDMs by how well they explain data RDMs.

    Parameters
    ----------
    data_rdms : rsatoolbox.rdm.RDMs
        One RDM per seed, model, dictionary, or region that stands for such a population.
    models : rsatoolbox.rdm.RDMs, mapping of name to ndarray, or list of ModelRDM
        Matrices (n, n) are fixed models. A stack (C, n, n) is a weighted model: the non-negative weights of its C
        components are fitted, so that all models are then evaluated by crossvalidation inside the bootstrap.
    comparison : str
        See `neurollm.rsa.comparators`; with weighted models ``pearson`` or ``cosine``.
    resample : {"conditions", "rdms", "both", "none"}
        What is random, so that the result holds for a population of it: stimuli; seeds, models or dictionaries;
        both; or no resampling (a t test over RDMs).
    condition_groups, rdm_groups : str or sequence, optional
        Descriptor, or labels, of what is drawn as a whole: the item of several wordings, the model of several seeds.
    n_boot : int, default=1000
    test : {"t", "percentile"}
        ``percentile`` only for one resampled factor and fixed models.
    correction : {"holm", "bh"}
        Over models, and over pairs of models.
    alpha : float, default=0.05
    random_state : int, default=0
    verbose : int, default=1

    Returns
    -------
    ModelComparison

    Raises
    ------
    InvalidInput
        An argument is not one of those above, or there are too few RDMs or conditions to resample.
    DataMismatch
        Data and models have different conditions.

    Examples
    --------
    >>> from neurollm.rsa.toolbox import to_rsatoolbox
    >>> rng = np.random.default_rng(0)
    >>> points = rng.normal(size=(2, 9, 3))
    >>> near, far = ((x[:, None] - x) ** 2 @ np.ones(3) for x in points)
    >>> noisy = {str(seed): near + 0.1 * (x[:, None] - x) ** 2 for seed, x in enumerate(rng.normal(size=(4, 9)))}
    >>> result = compare_models(to_rsatoolbox(noisy), {"near": near, "far": far}, "pearson", "none")
    >>> result.to_frame()["model"].tolist(), bool(result.noise_ceiling[0] <= result.noise_ceiling[1])
    (['near', 'far'], True)
    """
    method = check_comparison(comparison)
    data = tables(data_rdms, models, condition_groups, rdm_groups)
    _check(data, comparison, resample, n_boot, test, correction, alpha)
    run = _weighted if data.is_weighted else _fixed
    with _session(random_state, comparison in WHITENED, n_boot, verbose):
        found = run(data, method, comparison, resample, n_boot)
    return _result(data, found, comparison, resample, test, correction, alpha, random_state)


@dataclass(frozen=True)
class _Found:
    """What the resampling gave: variances by rsatoolbox's order of pairs, and the samples of one factor."""

    r: np.ndarray
    per_rdm: np.ndarray | None
    ceiling: tuple[float, float] | None
    variances: tuple[np.ndarray, np.ndarray, np.ndarray] | None
    dof: int
    samples: np.ndarray | None = None
    ceilings: np.ndarray | None = None
    n_boot: int = 0
    n_failed: int = 0


def _fixed(data: Tables, method: str, comparison: Comparison, resample: Resample, n_boot: int) -> _Found:
    from rsatoolbox import inference
    from rsatoolbox.model import ModelFixed
    from rsatoolbox.util.inference_util import extract_variances

    per_rdm = compare_rdms(data.rdms(), np.array(list(data.models.values())), comparison)
    r, n_rdms, n_conditions = per_rdm.mean(axis=0), data.n_rdm_groups, data.n_condition_groups
    several = n_rdms > 1
    ceiling = inference.boot_noise_ceiling(data.rdms(), method, "rdm_group") if several else None
    ceiling = None if ceiling is None else tuple(map(float, ceiling))
    if resample == "none":
        if not several:
            return _Found(r, per_rdm, None, None, 0)
        means = np.array([per_rdm[data.rdm_groups == group].mean(axis=0) for group in range(n_rdms)]).T
        variance = np.atleast_2d(np.cov(means, ddof=0)) / n_rdms
        return _Found(r, per_rdm, ceiling, extract_variances(variance, False, n_rdms, None), n_rdms - 1)
    fixed = [ModelFixed(name, data.rdms(vector[None])) for name, vector in data.models.items()]
    options = {"method": method, "N": n_boot, "rdm_descriptor": "rdm_group"}
    if resample == "both":
        result = inference.eval_dual_bootstrap(fixed, data.rdms(), pattern_descriptor="condition_group", **options)
        failed = int(np.isnan(result.evaluations[:, 0, 0, 0, 0]).sum())
        variances = extract_variances(result.variances, True, n_rdms, n_conditions)
        return _Found(r, per_rdm, ceiling, variances, min(n_rdms, n_conditions) - 1, n_boot=n_boot, n_failed=failed)
    options["boot_noise_ceil"] = several
    if resample == "conditions":
        result = inference.eval_bootstrap_pattern(fixed, data.rdms(), pattern_descriptor="condition_group", **options)
        sizes, dof = (None, n_conditions), n_conditions - 1
    else:
        result = inference.eval_bootstrap_rdm(fixed, data.rdms(), **options)
        sizes, dof = (n_rdms, None), n_rdms - 1
    ok = np.isfinite(result.evaluations).all(axis=1)
    samples, ceilings = result.evaluations[ok], result.noise_ceiling[:, ok].T if several else None
    # From the samples: eval_bootstrap_rdm leaves the noise ceiling out of its variances.
    variance = np.atleast_2d(np.cov((samples if ceilings is None else np.hstack([samples, ceilings])).T))
    variances = extract_variances(variance, several, *sizes)
    return _Found(r, per_rdm, ceiling, variances, dof, samples, ceilings, n_boot, int((~ok).sum()))


def _weighted(data: Tables, method: str, comparison: Comparison, resample: Resample, n_boot: int) -> _Found:
    """Crossvalidation inside the bootstrap, over what is resampled."""
    from rsatoolbox import inference
    from rsatoolbox.model import ModelFixed, ModelWeighted, fit_mock
    from rsatoolbox.util.inference_util import extract_variances

    chosen, fitters = [], []
    for name, vectors in data.models.items():
        weighted = vectors.ndim == 2
        chosen.append((ModelWeighted if weighted else ModelFixed)(name, data.rdms(np.atleast_2d(vectors))))
        fitters.append(fit_weights if weighted else fit_mock)
    options = {"method": method, "N": n_boot, "fitter": fitters}
    options |= {"pattern_descriptor": "condition_group", "rdm_descriptor": "rdm_group"}
    n_rdms, n_conditions = data.n_rdm_groups, data.n_condition_groups
    if resample == "both":
        result = inference.eval_dual_bootstrap(chosen, data.rdms(), k_pattern=None, k_rdm=None, **options)
        sizes, dof = (n_rdms, n_conditions), min(n_rdms, n_conditions) - 1
        evaluations, ceilings = result.evaluations[..., 0], result.noise_ceiling[..., 0]
    else:
        of_conditions = resample == "conditions"
        folds = {"k_rdm": 1} if of_conditions else {"k_pattern": 1}
        kind = "pattern" if of_conditions else "rdm"
        result = inference.bootstrap_crossval(chosen, data.rdms(), boot_type=kind, **folds, **options)
        sizes, dof = ((None, n_conditions), n_conditions - 1) if of_conditions else ((n_rdms, None), n_rdms - 1)
        evaluations, ceilings = result.evaluations, result.noise_ceiling
    means = evaluations.mean(axis=(2, 3))
    ok = np.isfinite(means).all(axis=1)
    failed = int((~ok).sum())
    if failed > n_boot // 2:
        raise InvalidInput(
            f"{failed} of {n_boot} bootstrap samples held too few different conditions or RDMs for the folds of a "
            "weighted model; give more conditions, or fixed models."
        )
    ceiling = None
    if n_rdms > 1 and resample != "conditions":  # folds over conditions alone leave no RDM out of its lower bound
        ceiling = tuple(float(bound) for bound in np.nanmean(ceilings, axis=(1, 2)))
    variances = extract_variances(result.variances, True, *sizes)
    return _Found(means[ok].mean(axis=0), None, ceiling, variances, dof, n_boot=n_boot, n_failed=failed)


def fit_weights(
    model: Any, data: RDMs, method: str = "corr", pattern_idx: Any = None, pattern_descriptor: Any = None, **_: Any
) -> np.ndarray:
    """Non-negative weights of a weighted model, for rsatoolbox's crossvalidation.

    Its default fitter searches numerically and takes a hundred times longer; its ``fit_regress_nn`` solves the same
    problem as here, but stops at a fixed 2e-14, which rounding never lets RDMs with numbers far from 1 reach.

    Returns
    -------
    ndarray, shape (C,)
        Of length 1; all 0 if no component helps.
    """
    from rsatoolbox.util.inference_util import pool_rdm
    from scipy.optimize import nnls

    parts = model.rdm_obj
    if pattern_idx is not None and pattern_descriptor is not None:
        parts = parts.subsample_pattern(pattern_descriptor, pattern_idx)
    vectors, target = parts.dissimilarities, pool_rdm(data, method=method).dissimilarities[0]
    there = ~(np.isnan(target) | np.isnan(vectors).any(axis=0))
    vectors, target = vectors[:, there], target[there]
    if method == "corr":
        vectors, target = vectors - vectors.mean(axis=1, keepdims=True), target - target.mean()
    weights = nnls(vectors.T, target)[0]
    length = np.linalg.norm(weights)
    return weights / length if length else weights


def _result(
    data: Tables,
    found: _Found,
    comparison: Comparison,
    resample: Resample,
    test: str,
    correction: str,
    alpha: float,
    random_state: int,
) -> ModelComparison:
    import pandas as pd

    pairs = list(itertools.combinations(range(found.r.size), 2))
    contrast = np.zeros((len(pairs), found.r.size))
    for row, (first, second) in enumerate(pairs):
        contrast[row, first], contrast[row, second] = 1.0, -1.0
    tests = _tests(found, contrast, test, alpha)
    low, high, p_zero = tests["zero"]
    p_ceiling = tests["ceiling"][2]
    names = tuple(data.models)
    pairwise = pd.DataFrame(
        {
            "first": [names[first] for first, _ in pairs],
            "second": [names[second] for _, second in pairs],
            "difference": contrast @ found.r,
            "ci_low": tests["pair"][0],
            "ci_high": tests["pair"][1],
            "p": tests["pair"][2],
            "p_adjusted": adjust(tests["pair"][2], correction),
        }
    )
    return ModelComparison(
        models=names,
        r=found.r,
        ci_low=low,
        ci_high=high,
        p_zero=p_zero,
        p_zero_adjusted=adjust(p_zero, correction),
        p_noise_ceiling=p_ceiling,
        p_noise_ceiling_adjusted=adjust(p_ceiling, correction),
        pairwise=pairwise,
        noise_ceiling=found.ceiling,
        per_rdm=found.per_rdm,
        dof=found.dof,
        n_rdms=len(data.data),
        n_conditions=data.n_conditions,
        n_pairs=data.n_pairs,
        dropped=data.dropped,
        n_pairs_left_out=data.n_pairs_left_out,
        n_boot=found.n_boot,
        n_failed=found.n_failed,
        comparison=comparison,
        resample=resample,
        test=test,
        correction=correction,
        alpha=alpha,
        random_state=random_state,
    )


def _tests(
    found: _Found, contrast: np.ndarray, test: str, alpha: float
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Interval and p of models, of their differences (rows of `contrast`), and of their distance to the ceiling."""
    lower = np.nan if found.ceiling is None else found.ceiling[0]
    if test == "percentile":
        ceilings = np.full((len(found.samples), 2), np.nan) if found.ceilings is None else found.ceilings
        return {
            "zero": _percentile(found.samples, alpha, one_sided=True),
            "pair": _percentile(found.samples @ contrast.T, alpha),
            "ceiling": _percentile(found.samples - ceilings[:, :1], alpha),
        }
    unknown = np.full(found.r.size, np.nan), np.full(len(contrast), np.nan), np.full((found.r.size, 2), np.nan)
    model, pair, ceiling = found.variances or unknown
    return {
        "zero": _t_test(found.r, model, found.dof, alpha, one_sided=True),
        "pair": _t_test(contrast @ found.r, pair, found.dof, alpha),
        "ceiling": _t_test(found.r - lower, ceiling[:, 0], found.dof, alpha),
    }


def _t_test(
    estimate: np.ndarray, variance: np.ndarray, dof: int, alpha: float, one_sided: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interval and p of an estimate with its variance; no variance, no test."""
    from scipy import stats

    error = np.sqrt(np.where(variance > 1e-24, variance, np.nan))
    half = error * stats.t.ppf(1 - alpha / 2, dof)
    p = stats.t.sf(estimate / error, dof) if one_sided else 2 * stats.t.sf(np.abs(estimate) / error, dof)
    return estimate - half, estimate + half, np.maximum(p, np.finfo(float).tiny)


def _percentile(
    samples: np.ndarray, alpha: float, one_sided: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Percentile interval, and p = (b + 1) / (B + 1) for the b samples on the other side of 0 (or on it)."""
    low, high = np.quantile(samples, [alpha / 2, 1 - alpha / 2], axis=0)
    unknown = np.isnan(samples).any(axis=0)
    below = ((samples <= 0).sum(axis=0) + 1) / (len(samples) + 1)
    above = ((samples >= 0).sum(axis=0) + 1) / (len(samples) + 1)
    p = below if one_sided else np.minimum(2 * np.minimum(below, above), 1)
    return low, high, np.where(unknown, np.nan, p)


def _check(data: Tables, comparison: str, resample: Any, n_boot: int, test: str, correction: str, alpha: float) -> None:
    if resample not in POPULATIONS:
        choices = "; ".join(f"'{name}': {words}" for name, words in POPULATIONS.items())
        raise InvalidInput(
            f"resample is {shown(resample)}; say which population the result should hold for. {choices} ('rdms' by a "
            "bootstrap, 'none' by a t test)."
        )
    if correction not in ("holm", "bh"):
        raise InvalidInput(f"correction is {shown(correction)}; expected 'holm' or 'bh'.")
    if not 0 < alpha < 1:
        raise InvalidInput(f"alpha is {alpha}; expected a number between 0 and 1.")
    named = [*data.models.items(), *((f"data {row}", vector) for row, vector in enumerate(data.data))]
    for name, vectors in named:
        if vectors.ndim == 1 and not varies(vectors[None], comparison)[0]:
            raise InvalidInput(f"RDM {shown(name)}: all its distances are alike, so it has no {comparison} comparison.")
    if n_boot < 20:
        raise InvalidInput(f"n_boot is {n_boot}; a bootstrap needs at least 20 samples, better 1000.")
    if test not in ("t", "percentile"):
        raise InvalidInput(f"test is {shown(test)}; expected 't' or 'percentile'.")
    if test == "percentile" and (resample in ("both", "none") or data.is_weighted):
        raise InvalidInput(
            "test 'percentile' needs fixed models and resample 'conditions' or 'rdms': the samples of the dual "
            "bootstrap and of crossvalidation vary more than the estimate does; use test='t'."
        )
    if data.is_weighted and (comparison not in _FITTED or resample == "none"):
        raise InvalidInput(
            f"weighted models are fitted for the comparisons {listed(_FITTED)} and with resample 'conditions', 'rdms' "
            f"or 'both'; found {shown(comparison)} with {shown(resample)}."
        )
    if resample in ("rdms", "both") and data.n_rdm_groups < _FEWEST:
        raise InvalidInput(
            f"resample {shown(resample)} draws from the data RDMs, and {data.n_rdm_groups} independent RDMs are too "
            f"few; at least {_FEWEST} are needed ('conditions' generalises over stimuli alone)."
        )
    if resample in ("conditions", "both") and data.n_condition_groups < _FEWEST:
        raise InvalidInput(
            f"resample {shown(resample)} draws from the conditions, and {data.n_condition_groups} independent ones are "
            f"too few; at least {_FEWEST} are needed."
        )


@contextmanager
def _session(random_state: int, whitened: bool, total: int, verbose: int) -> Iterator[None]:
    """Run rsatoolbox with its own seed, our progress display and a whitened comparison for any number of conditions.

    Its whitened comparisons fail from 100 conditions on when pairs are missing, which every bootstrap of conditions
    brings about; for the time of the call they are replaced by the closed form.
    """
    import rsatoolbox.inference  # noqa: F401 (loads the two modules below)

    compare, evaluate = (sys.modules[f"rsatoolbox.{name}"] for name in ("rdm.compare", "inference.evaluate"))
    replaced: list[tuple[Any, str, Any]] = [(evaluate, "tqdm", SimpleNamespace(trange=_trange(total, verbose)))]
    if whitened:
        replaced.append((compare, "_cosine_cov_weighted", whitened_cosine))
    with _LOCK:
        state, originals = np.random.get_state(), [getattr(module, name) for module, name, _ in replaced]
        try:
            for module, name, value in replaced:
                setattr(module, name, value)
            np.random.seed(stream(random_state, "rsatoolbox").integers(0, 2**32, size=8, dtype=np.uint32))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # empty slices of samples that cannot be evaluated; they are counted
                yield
        finally:
            np.random.set_state(state)
            for (module, name, _), original in zip(replaced, originals, strict=True):
                setattr(module, name, original)


def _trange(total: int, verbose: int) -> Any:
    def trange(count: int) -> Iterator[int]:
        with Progress("bootstrap", total, "samples", verbose) as progress:
            for index in range(count):
                yield index
                progress.advance(1)

    return trange
