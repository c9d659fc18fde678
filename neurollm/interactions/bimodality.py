"""Two kinds of features? Modes of norms beside those of a model that has learned nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neurollm.stats.modes import dip_statistic, dip_test, mixture_delta_bic


def bimodality(
    values: np.ndarray, null: Sequence[np.ndarray], n_sim: int = 999, random_state: int = 0
) -> dict[str, float]:
    """Dip and mixture of values, beside the same of random models.

    Parameters
    ----------
    values : ndarray, shape (n,)
    null : sequence of ndarray, shape (n,)
        The same quantity of random models.
    n_sim : int, default=999
        Uniform samples of the dip test.
    random_state : int, default=0

    Returns
    -------
    dict
        ``n``; ``dip`` with ``p_uniform`` (of unimodality), ``dip_null_mean``, ``dip_null_max`` and ``p_dip`` (of random
        models having as large a dip); ``delta_bic``, ``delta_bic_null_mean``, ``delta_bic_null_max``, ``p_delta_bic``;
        ``n_sim``, ``n_null``. NaN of values that do not vary.

    Examples
    --------
    >>> draw = np.random.default_rng(0)
    >>> found = bimodality(draw.normal(0, 1, 200), [draw.normal(0, 1, 200) for _ in range(4)], n_sim=19)
    >>> found["p_uniform"] > 0.05, found["delta_bic"] < 0
    (True, True)
    """
    test = dip_test(values, n_sim, random_state)
    row = {"n": test.n, "dip": test.statistic, "p_uniform": test.p, "n_sim": test.n_sim}
    bic = mixture_delta_bic(values, random_state)
    pairs = (
        ("dip", test.statistic, dip_statistic),
        ("delta_bic", bic, lambda draw: mixture_delta_bic(draw, random_state)),
    )
    for name, observed, statistic in pairs:
        found = np.array([statistic(draw) for draw in null])
        reached = np.count_nonzero(found >= observed)
        p = (reached + 1) / (len(null) + 1) if np.isfinite(observed) and np.isfinite(found).all() else float("nan")
        row |= {name: observed, f"{name}_null_mean": found.mean(), f"{name}_null_max": found.max(), f"p_{name}": p}
    return row | {"n_null": len(null)}
