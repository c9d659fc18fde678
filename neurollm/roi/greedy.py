"""A region chosen feature by feature so that its RDM fits a model (`neurollm.stats.rdms.greedy`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.designs import Design
from neurollm.roi.contents import text_keys
from neurollm.roi.region import ROI
from neurollm.roi.selection import used_contents
from neurollm.rsa.models import ModelRDM
from neurollm.rsa.rows import ModelRows, check_whole, read_trials
from neurollm.stats.rdms.greedy import Steps, greedy_selection
from neurollm.stats.rdms.space import Comparison, check_comparison
from neurollm.validation import several

if TYPE_CHECKING:
    import pandas as pd


def greedy_roi(
    design: Design,
    X: Any,
    obs: pd.DataFrame | None = None,
    model: str | ModelRDM = "categorical",
    *,
    name: str,
    n_features: int,
    comparison: Comparison = "pearson",
    steps: Steps = "forward",
    standardise: bool = True,
    min_active: int = 5,
    scale: str = "raw",
    features: Any = None,
) -> ROI:
    """Choose features whose common RDM is most like a model RDM.

    Its score on the same items says nothing (see `neurollm.roi.crossfit_rsa`). Test the region on other items, or use
    `cross_fit_rsa`.

    Parameters
    ----------
    design : Design
    X : array or AnnData, shape (n_trials, V)
    obs : DataFrame
        Trial table with a column ``text``; None with an AnnData.
    model : str or ModelRDM, default="categorical"
        See `neurollm.rsa.models`.
    name : str
    n_features : int
    comparison : {"pearson", "whitened"}
        Correlation of squared-difference RDMs, or linear CKA.
    steps : {"forward", "floating", "swap"}
        See `neurollm.stats.rdms.greedy`.
    standardise : bool, default=True
        Give every feature the sum of squares 1 over the rows.
    min_active : int, default=5
        Features active in fewer rows are left out (label-blind).
    scale : {"raw", "log1p", "binary"}
        Transform of every trial before averaging.
    features : sequence, optional
        Feature ids; default 0 … V−1.

    Returns
    -------
    ROI
        Its features in the order in which they came.

    Raises
    ------
    InvalidInput
        An option is wrong, the model does not fit, the table has no texts, or fewer features vary than are wanted.
    DataMismatch
        Rows or ids do not go with the activations.

    Examples
    --------
    >>> import pandas as pd
    >>> from neurollm.designs import CategoricalDesign
    >>> obs = pd.DataFrame({"kind": ["a", "b", "c"] * 8, "item": np.repeat(np.arange(8), 3)})
    >>> obs["text"] = obs["kind"] + obs["item"].astype(str)
    >>> X = np.random.default_rng(0).normal(size=(24, 40))
    >>> X[:, [4, 5, 6]] += 6 * np.eye(3)[np.arange(24) % 3]
    >>> roi = greedy_roi(CategoricalDesign("kind"), X, obs, name="kinds", n_features=3)
    >>> sorted(roi.feature), roi.is_declared
    ([4, 5, 6], False)
    """
    X, obs, features = read_trials(X, obs, features, "greedy_roi")
    check_comparison(comparison)
    check_whole("greedy_roi", "min_active", min_active, 0)
    text_keys(obs)  # refuse a table without texts before the work, not after
    rows = ModelRows.of(design, model, X, obs, scale)
    tested = np.flatnonzero(rows.n_active >= min_active)
    path = greedy_selection(
        rows.values[:, tested], rows.matrix, n_features, comparison=comparison, steps=steps, standardise=standardise
    )
    return ROI(
        name,
        tuple(features[tested[path.feature]].tolist()),
        (1,) * n_features,
        f"{n_features} of {path.n_candidates:,} features by greedy selection ({steps}) for RSA with the model "
        f"'{rows.model.name}' ({comparison}): r = {path.score[-1]:.3f} on the {rows.exchange.n_items} "
        f"{several(design.item or 'trial')} that chose them.",
        None,
        *used_contents(obs, design.item),
        "greedy",
    )
