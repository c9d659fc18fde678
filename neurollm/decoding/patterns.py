"""What a linear decoder's decision says about the features: activation patterns instead of weights.

A weight may be large because a feature cancels noise that another one carries. The pattern (Haufe et al. 2014,
NeuroImage 87:96, eq. 6) of the decision ``s = wᵀx`` is

    A = Σ_x w / (wᵀ Σ_x w) = cov(x, s) / var(s),

the change of each feature per unit of decision, Σ_x the covariance of the features over trials. It holds for
linear decoders; others have none.
"""

from __future__ import annotations

import numpy as np


def activation_patterns(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pattern of a decision that weighs features linearly.

    Parameters
    ----------
    values : ndarray, shape (n_trials, k)
        Features that are described; those of non-zero weight among them.
    weights : ndarray, shape (k,)
        In units of the features.

    Returns
    -------
    ndarray, shape (k,)
        NaN if the decision does not vary.

    Examples
    --------
    >>> values = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 2.0]])  # the second feature: first + noise
    >>> activation_patterns(values, np.array([1.0, 0.0])).round(3).tolist()
    [1.0, 1.0]
    """
    centred = values - values.mean(axis=0)
    decision = centred @ weights
    size = decision @ decision
    if size == 0:
        return np.full(weights.size, np.nan)
    return decision @ centred / size
