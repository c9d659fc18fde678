r"""Ridge classifier whose penalty is chosen by leaving whole items out, in closed form.

With the trials weighted so that both classes count the same (w_i = n / 2n_class), targets t_i = ±1, columns centred by
their weighted means, A = W^{1/2} Z and b = W^{1/2} t, the classifier is the regularised Fisher discriminant

    β_λ = (A'A + λ I)^{-1} A' b,      score(z) = (z − m)' β_λ.

Its hat matrix is H_λ = w^{1/2} w^{1/2}' / n + A (A'A + λI)^{-1} A' (the first part is the intercept). The error that a
classifier without the trials of item u makes on them follows from the one with all trials (the block form of PRESS):

    e_(u) = (I − H_uu)^{-1} (b − H b)_u,

so that every penalty is judged on held-out items at the price of one eigendecomposition. The scale of the columns and
the weights of the classes are those of all training trials.

Source: Hastie, Tibshirani & Friedman, The Elements of Statistical Learning (2009), eq. 7.64 and section 4.3.1.
"""

from __future__ import annotations

import numpy as np

PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)
"""λ / n, the strongest first: of equally good ones the strongest is taken."""


def ridge_scores(Z: np.ndarray, labels: np.ndarray, items: np.ndarray, Z_test: np.ndarray) -> np.ndarray:
    """Decision values of test trials; above 0 is the positive class.

    Parameters
    ----------
    Z : ndarray, shape (n, k)
        Standardised features of the training trials; more columns than trials are possible.
    labels : ndarray of bool, shape (n,)
        Both classes occur.
    items : ndarray, shape (n,)
        Item of each training trial: trials of an item are left out together when the penalty is chosen.
    Z_test : ndarray, shape (m, k)

    Returns
    -------
    ndarray, shape (m,)

    Examples
    --------
    >>> Z = np.array([[2.0], [1.0], [-1.0], [-2.0]])
    >>> ridge_scores(Z, np.array([True, True, False, False]), np.arange(4), np.array([[1.5], [-1.5]])) > 0
    array([ True, False])
    """
    mean, A, b, values, U = _decompose(Z, labels)
    fitted = U.T @ b
    shrink = values / (values + len(b) * np.array(PENALTIES)[:, None])
    errors = _left_out(U, shrink, fitted, b, items)
    best = int(np.argmin(np.round(errors / errors.min(), 9)))
    # U'b = values^{-1/2} V'A'b, so A'U diag(1 / (values + λ)) U'b is the primal solution for any shape of A.
    weights = A.T @ (U @ (shrink[best] / values * fitted))
    return (Z_test - mean) @ weights


def _decompose(Z: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Weighted mean, A, b, and the nonzero eigenvalues and eigenvectors (n, q) of AA'."""
    n = len(labels)
    root = np.sqrt(n / 2 / np.where(labels, labels.sum(), n - labels.sum()))
    mean = root**2 @ Z / n
    A = root[:, None] * (Z - mean)
    wide = Z.shape[1] > n
    values, vectors = np.linalg.eigh(A @ A.T if wide else A.T @ A)
    kept = values > 1e-10 * max(values.max(initial=0), 1e-300)
    values = values[kept]
    U = vectors[:, kept] if wide else A @ (vectors[:, kept] / np.sqrt(values))
    return mean, A, np.where(labels, root, -root), values, U


def _left_out(U: np.ndarray, shrink: np.ndarray, fitted: np.ndarray, b: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Sum of squared held-out errors of every penalty (L,)."""
    n = len(b)
    _, codes = np.unique(items, return_inverse=True)
    sizes = np.bincount(codes)
    order = np.argsort(codes, kind="stable")
    place = np.full((sizes.size, sizes.max()), n)  # row n is the padding of items with fewer trials: zeros
    place[codes[order], np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)] = order
    left = np.vstack([U, np.zeros(U.shape[1])])[place]
    root = np.append(np.abs(b), 0.0)[place]
    residual = np.vstack([b[:, None] - U @ (shrink * fitted).T, np.zeros(len(shrink))])[place]
    hat = (left * shrink[:, None, None, :]) @ left.transpose(0, 2, 1) + root[:, :, None] * root[:, None, :] / n
    errors = np.linalg.solve(np.eye(place.shape[1]) - hat, np.moveaxis(residual, -1, 0)[..., None])
    return (errors**2).sum(axis=(1, 2, 3))
