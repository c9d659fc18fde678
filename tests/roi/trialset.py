"""Trials with texts, with or without an effect, in numpy."""

import numpy as np
import pandas as pd


def trials(n_items=20, n_features=40, seed=0, effect=0.0, n_carry=0, between=False, prefix="i"):
    """Two conditions (within items, or between them); the first `n_carry` features differ by `effect`."""
    rng = np.random.default_rng(seed)
    item = np.arange(n_items) if between else np.repeat(np.arange(n_items), 2)
    outcome = np.resize(["won", "lost"], item.size)
    items = [f"{prefix}{number:02d}" for number in item]
    text = [f"Runner {name} {what}." for name, what in zip(items, outcome, strict=True)]
    obs = pd.DataFrame({"item": items, "outcome": outcome, "text": text})
    X = rng.normal(size=(item.size, n_features))
    return X + effect * np.outer(outcome == "won", np.arange(n_features) < n_carry), obs
