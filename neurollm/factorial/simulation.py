"""Simulated units with a known answer: of one factor, of a sum, of a thresholded sum, and of real integration.

In a trial whose factors are a, b ∈ {0, 1} (1 for the level ``on``) a unit's activation is ``effect · s(a, b) · g + n``:

=============  ======================================  ==========================================================
kind           s(a, b)                                 cell means 00, 10, 01, 11
=============  ======================================  ==========================================================
``none``       0                                       no effect
``main``       2a                                      0, 2, 0, 2
``sum``        a + b                                   0, 1, 1, 2: additive, whatever the gain
``threshold``  2·ReLU(a + b − 0.5 + u/4)               about 0, 1, 1, 3: an interaction that the threshold makes
``and``        2ab                                     0, 0, 0, 2
``or``         2 max(a, b)                             0, 2, 2, 2
``xor``        2 |a − b|                               0, 2, 2, 0
=============  ======================================  ==========================================================

g is lognormal with mean 1, a part of it shared by the trials of an item; n is sparse and heavy-tailed: zero, or with
probability `rate` the size of a t variable with 3 degrees of freedom; u is a t variable with 5, added before the
threshold (u/4 is at the default `noise`, of which it is half).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from neurollm.designs import FactorialDesign
from neurollm.errors import InvalidInput
from neurollm.random import stream
from neurollm.rsa.rows import check_whole
from neurollm.validation import closest, listed, shown

if TYPE_CHECKING:
    import pandas as pd

THRESHOLD = 0.5
_GAIN = 0.3  # standard deviations of log g: of the item, and of the trial
_SIGNALS = {
    "none": lambda a, b: 0.0 * a,
    "main": lambda a, b: 2.0 * a,
    "sum": lambda a, b: a + b,
    "threshold": None,
    "and": lambda a, b: 2.0 * a * b,
    "or": lambda a, b: 2.0 * np.maximum(a, b),
    "xor": lambda a, b: 2.0 * np.abs(a - b),
}


@dataclass(frozen=True, eq=False)
class SimulatedUnits:
    """Trials of simulated units.

    Attributes
    ----------
    X : csr_array, shape (n_trials, number of units)
        At least 0.
    obs : DataFrame
        ``item, text, f1, f2``, the levels of the factors being ``on`` and ``off``.
    design : FactorialDesign
        Effects are ``on`` minus ``off``.
    kinds : tuple of str
        Of every column.
    """

    X: sparse.csr_array
    obs: pd.DataFrame
    design: FactorialDesign
    kinds: tuple[str, ...]


def simulate_units(
    n_items: int,
    kinds: Mapping[str, int],
    *,
    effect: float = 1.0,
    noise: float = 0.5,
    rate: float = 0.2,
    between: int = 0,
    random_state: int = 0,
) -> SimulatedUnits:
    """Simulate a 2×2 study of units whose kind is known.

    Parameters
    ----------
    n_items : int
    kinds : mapping from kind to int
        How many units of each kind, in the order of the columns (see the module).
    effect : float, default=1.0
        Multiplies the signal.
    noise : float, default=0.5
        Multiplies n.
    rate : float, default=0.2
        Share of the trials with noise.
    between : {0, 1, 2}
        How many of the factors vary between items, the second first; with 0 every item has all four cells.
    random_state : int, default=0

    Returns
    -------
    SimulatedUnits

    Raises
    ------
    InvalidInput
        An unknown kind, fewer items than groups of them, or a number out of its range.

    Examples
    --------
    >>> sim = simulate_units(3, {"sum": 1, "and": 2}, noise=0)
    >>> sim.X.shape, sim.kinds
    ((12, 3), ('sum', 'and', 'and'))
    >>> (sim.X.toarray()[:4] > 0).astype(int).tolist()  # on:on, on:off, off:on, off:off
    [[1, 1, 1], [1, 0, 0], [1, 0, 0], [0, 0, 0]]
    """
    unknown = [kind for kind in kinds if kind not in _SIGNALS]
    if unknown:
        hint = closest(unknown[0], _SIGNALS) or "."
        raise InvalidInput(f"simulate_units: unknown kind '{unknown[0]}'{hint} The kinds are {listed(_SIGNALS)}.")
    check_whole("simulate_units", "n_items", n_items, 1)
    for kind, count in kinds.items():
        check_whole("simulate_units", f"the number of units '{kind}'", count, 0)
    for name, value, most in (("effect", effect, np.inf), ("noise", noise, np.inf), ("rate", rate, 1)):
        if not isinstance(value, Real) or not (np.isfinite(value) and 0 <= value <= most):
            wanted = "lie between 0 and 1" if name == "rate" else "be a finite number of at least 0"
            raise InvalidInput(f"simulate_units: {name} must {wanted}, found {shown(value)}.")
    if between not in (0, 1, 2) or n_items < 2**between:
        raise InvalidInput(f"simulate_units: {n_items} items with {between} factors between them cannot be made.")
    named = tuple(kind for kind, count in kinds.items() for _ in range(count))
    obs, item, a, b = _trials(n_items, between)
    X = np.zeros((len(obs), len(named)))
    for column, kind in enumerate(named):
        rng = stream(random_state, "simulated_unit", column)
        gain = _gain(rng, n_items)[item] * _gain(rng, len(obs))
        spikes = (rng.random(len(obs)) < rate) * np.abs(rng.standard_t(3, len(obs)))
        latent = rng.standard_t(5, len(obs))
        signal = _SIGNALS[kind]
        s = 2 * np.maximum(a + b - THRESHOLD + noise * latent / 2, 0) if signal is None else signal(a, b)
        X[:, column] = effect * s * gain + noise * spikes
    design = FactorialDesign({"f1": ("on", "off"), "f2": ("on", "off")})
    return SimulatedUnits(sparse.csr_array(X), obs, design, named)


def _gain(rng: np.random.Generator, n: int) -> np.ndarray:
    """Lognormal with mean 1."""
    return np.exp(_GAIN * rng.standard_normal(n) - _GAIN**2 / 2)


def _trials(n_items: int, between: int) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, np.ndarray]:
    """The trial table, and item and factors of every trial as numbers."""
    import pandas as pd

    item, cell = np.divmod(np.arange(4 * n_items), 4)
    a, b = 1.0 - cell // 2, 1.0 - cell % 2
    group = np.stack([item // 2 % 2, item % 2])  # of the first and the second factor, where they vary between items
    kept = np.ones(item.size, bool)
    if between:
        kept &= b == group[1]
    if between == 2:
        kept &= a == group[0]
    item, a, b = item[kept], a[kept], b[kept]
    f1, f2 = (np.where(values == 1, "on", "off") for values in (a, b))
    names = np.array([f"item {number:0{len(str(n_items))}d}" for number in item])
    texts = [f"{name}: {one} and {two}" for name, one, two in zip(names, f1, f2, strict=True)]
    return pd.DataFrame({"item": names, "text": texts, "f1": f1, "f2": f2}), item, a, b
