"""Contrast estimates and t statistics of all features, from float64 two-pass moments.

Three models, one per scheme of exchange (`neurollm.stats.shufflings`); n items, weights w:

* paired: item differences d; ``t = mean(d) / (sd(d)/√n)``, df n − 1.
* levels between items: ``t = Σ w_l m_l / (s √Σ w_l²/n_l)`` with the pooled s, df n − k.
* k levels within items: additive model item + level, ``t = Σ w_l m_l / (s √Σ w_l²/n)`` with s
  from its residuals, df (n − 1)(k − 1). The interval of the effect and the effect size use
  the items' contrast scores (df n − 1) instead, which does not assume sphericity.

Activations are float32, so equal activations differ by rounding, in a way that may follow the condition
(another place in a batch, another sequence length). A feature whose norm is at most
``32 eps(float32) √rows`` times its largest cell, i.e. that varies by less than 4e-6 of it, is called constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from neurollm.stats.arrays import column_blocks, largest_values
from neurollm.stats.shufflings import Shuffling

_CONSTANT = 1e-24  # sums of squares below this share are rounding, not variation
NOISE = 32 * float(np.finfo(np.float32).eps)  # root mean square, as a share of the largest cell; seen: up to 5 eps


@dataclass(frozen=True)
class ContrastMoments:
    """Estimates of one contrast for V features.

    Attributes
    ----------
    effect, se : ndarray
        The contrast of means and its standard error, with ``df_effect`` degrees of freedom.
    stat : ndarray
        t statistic with ``df`` degrees of freedom; infinite when nothing varies besides the effect.
    norm : ndarray
        Invariant norm of the feature for the permutation kernel; 0 for a feature that is constant up to
        the rounding of float32, NaN for a non-finite one.
    unit : float
        ``se / sd``: turns effect / se into a standardised effect.
    df, df_effect : int
    """

    effect: np.ndarray
    se: np.ndarray
    stat: np.ndarray
    norm: np.ndarray
    unit: float
    df: int
    df_effect: int


def contrast_moments(
    Y: Any, shuffling: Shuffling, weights: np.ndarray, largest: np.ndarray | None = None
) -> ContrastMoments:
    """Estimate the contrast that `shuffling` tests.

    Parameters
    ----------
    Y : array of any supported kind, shape (n_rows, V)
        Item differences (sign_flip), item means (whole_item) or item × level cells (within_item).
    shuffling : Shuffling
    weights : ndarray
        Weights of the levels coded 0 … k−1; not used by sign_flip, whose data carry them.
    largest : ndarray, shape (V,), optional
        Largest absolute cell of each feature, against which rounding is judged; default: of `Y`. The
        differences of sign_flip do not show it.

    Returns
    -------
    ContrastMoments
    """
    weights = np.asarray(weights, float)
    model = {"sign_flip": _paired, "whole_item": _between, "within_item": _within}[shuffling.kind]
    out = np.empty((4, Y.shape[1]))
    with np.errstate(divide="ignore", invalid="ignore"):
        for columns, block in column_blocks(Y):
            out[:, columns] = model(block, shuffling, weights)
    largest = largest_values(Y) if largest is None else np.asarray(largest, float)
    norm = out[3]
    norm[norm <= NOISE * largest * np.sqrt(Y.shape[0])] = 0.0  # a NaN norm compares False and stays
    if shuffling.kind == "whole_item":
        unit = np.sqrt(np.sum(weights**2 / np.bincount(shuffling.codes, minlength=weights.size)))
        df_effect = shuffling.df
    else:
        unit, df_effect = 1 / np.sqrt(shuffling.n_items), shuffling.n_items - 1
    return ContrastMoments(*out, float(unit), shuffling.df, df_effect)


def _squares(values: np.ndarray, compared_with: np.ndarray) -> np.ndarray:
    """Column sums of squares, with rounding noise set to exactly 0."""
    total = np.sum(values**2, axis=0)
    return np.where(total > _CONSTANT * compared_with, total, np.where(np.isfinite(total), 0.0, np.nan))


def _ratio(effect: np.ndarray, se: np.ndarray) -> np.ndarray:
    """effect / se, with 0/0 = 0: no effect and nothing that varies."""
    return np.where((effect == 0) & (se == 0), 0.0, effect / se)


def _paired(d: np.ndarray, shuffling: Shuffling, weights: np.ndarray) -> tuple:
    n = shuffling.n_items
    size = np.sum(d**2, axis=0)
    effect = d.mean(axis=0)
    se = np.sqrt(_squares(d - effect, size) / (n - 1) / n)
    return effect, se, _ratio(effect, se), np.sqrt(size)


def _between(y: np.ndarray, shuffling: Shuffling, weights: np.ndarray) -> tuple:
    counts = np.bincount(shuffling.codes, minlength=weights.size)
    means = np.stack([y[shuffling.codes == level].mean(axis=0) for level in range(weights.size)])
    effect = weights @ means
    norm2 = _squares(y - y.mean(axis=0), np.sum(y**2, axis=0))
    rest = _squares(y - means[shuffling.codes], norm2)
    se = np.sqrt(rest / shuffling.df * np.sum(weights**2 / counts))
    return effect, se, _ratio(effect, se), np.sqrt(norm2)


def _within(y: np.ndarray, shuffling: Shuffling, weights: np.ndarray) -> tuple:
    n = shuffling.n_items
    size = np.sum(y**2, axis=0)
    cube = y.reshape(n, weights.size, -1)
    scores = np.einsum("l,ilv->iv", weights, cube)
    effect = scores.mean(axis=0)
    se_scores = np.sqrt(_squares(scores - effect, np.sum(scores**2, axis=0)) / (n - 1) / n)
    centred = cube - cube.mean(axis=1, keepdims=True)
    norm2 = _squares(centred.reshape(y.shape), size)
    rest = _squares((centred - centred.mean(axis=0)).reshape(y.shape), norm2)
    se_model = np.sqrt(rest / shuffling.df * np.sum(weights**2) / n)
    return effect, se_scores, _ratio(effect, se_model), np.sqrt(norm2)
