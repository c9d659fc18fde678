"""Statistics of the weights of an interaction model, each beside its random-initialisation null.

Vectors are the embeddings v_i (rows of V), columns of V, rows of A, rows and columns of W1 and W2, rows of the
refit W, and decoder rows of the dictionary. Each has a Gini coefficient, an effective rank, L0, L1 and L2 norm and
a largest absolute entry (`neurollm.stats.concentration`). V, W and the decoder also have

    cosines of all pairs     mean, mean |cos| (≈ √(2/(π d)) of independent directions), sd, largest
    spectrum λ of XᵀX        shares of the total Σ λ, participation ratio, components for 90 and 95 %

The same is computed of B models that have learned nothing: `NFM.random`, and for W and decoder directions uniform on
the sphere with the norms that they have. Extremes of thousands of random vectors are extreme too, so that a
feature's statistic is compared with the null's most extreme feature, which corrects for all features.

With T one number of a model and B + 1 models, the trained one among them, p is the share of models whose T lies
as far from the mean of all B + 1: exact if training had done nothing, never below 1 / (B + 1). ``p_fwer`` is the same
of the largest |z| over all statistics, but for those in which all models but one agree: any of them could be that one,
and its z says nothing. z is (T − mean) / sd of the random models alone.

That weights differ from initialisation says that training moved them, not that the model computes anything with
them; for that see `neurollm.interactions.contributions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neurollm.dictionaries.cosines import direction_cosines, expected_abs
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.interactions.bimodality import bimodality
from neurollm.interactions.coupling import SAME, norm_coupling, rank_p
from neurollm.interactions.model import NFM
from neurollm.interactions.training import check_counts
from neurollm.interactions.weight_report import FEATURE_VECTORS, LOWER, STATISTICS, WeightReport
from neurollm.progress import Progress
from neurollm.random import stream
from neurollm.stats.concentration import participation_ratio, vector_statistics

if TYPE_CHECKING:
    from neurollm.dictionaries.base import Dictionary

QUANTILES = np.linspace(0, 1, 201)
SUMMARIES: dict[str, Callable[[np.ndarray], float]] = {
    "mean": np.mean,
    "p5": lambda values: np.quantile(values, 0.05),
    "p95": lambda values: np.quantile(values, 0.95),
    "min": np.min,
    "max": np.max,
}


def inspect_weights(
    nfm: NFM,
    dictionary: Dictionary | None = None,
    *,
    density: np.ndarray | None = None,
    n_random: int = 20,
    random_state: int = 0,
    verbose: int = 0,
) -> WeightReport:
    """Every statistic of weights beside the same of random models.

    Parameters
    ----------
    nfm : NFM
    dictionary : Dictionary, optional
        The one whose codes the model takes: its decoder rows are inspected too, and norms of decoder, refit and
        embedding are compared.
    density : ndarray, shape (n_features,), optional
        Share of tokens on which each feature is active, to hold constant.
    n_random : int, default=20
        Random models; 19 or more, or no p can be .05 or below and the verdict is that it cannot be told.
    random_state : int, default=0
    verbose : int, default=0

    Returns
    -------
    WeightReport

    Raises
    ------
    InvalidInput
        If `n_random` is no whole number of at least 2 or `random_state` none of at least 0, or density is no share.
    DataMismatch
        If the dictionary is another one, or density not of these features.

    Examples
    --------
    >>> nothing = NFM({"V": 0.05 * torch.randn(60, 12), "A": torch.randn(12, 8)}, top_n=4)
    >>> report = inspect_weights(nothing, n_random=4)
    >>> row = report.row("V rows", "gini")
    >>> bool(0.3 < row["null_mean"] < 0.5), report.features().shape[0]
    (True, 60)
    """
    check_counts(2, "inspect_weights: ", n_random=n_random)
    check_counts(0, "inspect_weights: ", random_state=random_state)
    density = _density(nfm, density)
    decoder = None if dictionary is None else _decoder(nfm, dictionary)
    trained = _Model(_vectors(nfm.weights, decoder))
    models, norms = [], []
    with Progress("inspect", n_random, "random models", verbose) as progress:
        for weights in _random(nfm, decoder, n_random, random_state):
            models.append(_Model(_vectors(weights, weights.get("decoder")), trained))
            norms.append(_initial_norms(nfm, decoder, models[-1], len(norms), random_state))
            progress.advance(1)
    return WeightReport(
        table=_table(trained, models),
        feature_table=_features(trained, models, density),
        coupling=_coupling(trained, norms, density, random_state),
        modes=_modes(trained, norms, random_state),
        spectra=_spectra(trained, models),
        quantiles=_quantiles(trained, models),
        n_features=nfm.n_features,
        rank=nfm.rank,
        n_random=n_random,
        random_state=random_state,
        fingerprint=nfm.fingerprint,
        dictionary_fingerprint="" if dictionary is None else dictionary.fingerprint,
    )


class _Model:
    """All statistics of one model; a random one forgets the values of single vectors, except norms."""

    def __init__(self, vectors: dict[str, np.ndarray], like: _Model | None = None) -> None:
        self.values = {name: vector_statistics(rows) for name, rows in vectors.items()}
        self.sizes = {name: rows.shape for name, rows in vectors.items()}
        self.norms = {name: self.values[name]["l2"] for name in vectors if name in FEATURE_VECTORS}
        self.figures: dict[tuple[str, str], dict[str, float]] = {}
        self.undefined: dict[tuple[str, str], int] = {}
        self.curves: dict[tuple[str, str], np.ndarray] = {}
        for name, statistics in self.values.items():
            for statistic, values in statistics.items():
                finite = values[np.isfinite(values)]
                self.undefined[name, statistic] = len(values) - len(finite)
                self.figures[name, statistic] = {
                    kind: float(summary(finite)) if finite.size else float("nan") for kind, summary in SUMMARIES.items()
                }
                if name in FEATURE_VECTORS and finite.size:
                    self.curves[name, statistic] = np.quantile(finite, QUANTILES)
        self.spectra = {}
        for name in FEATURE_VECTORS:
            if name in vectors:
                self.spectra[name], figures = _gram(vectors[name])
                self.figures |= {(name, statistic): {"mean": value} for statistic, value in figures.items()}
        if like is not None:
            self.values = {}


def _vectors(weights: dict[str, torch.Tensor], decoder: torch.Tensor | None) -> dict[str, np.ndarray]:
    """What is inspected, as rows."""
    plain = {name: weight.cpu().numpy() for name, weight in weights.items()}
    vectors = {"V rows": plain["V"], "V columns": plain["V"].T, "A rows": plain["A"]}
    for name in ("W1", "W2"):
        if name in plain:
            vectors |= {f"{name} rows": plain[name], f"{name} columns": plain[name].T}
    if "W" in plain:
        vectors["W rows"] = plain["W"]
    if decoder is not None:
        vectors["decoder rows"] = decoder.cpu().numpy()
    return vectors


def _random(
    nfm: NFM, decoder: torch.Tensor | None, n_random: int, random_state: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Weights of models that have learned nothing."""
    for draw in range(n_random):
        seed = int(stream(random_state, "inspect_weights", draw).integers(2**31))
        weights = dict(NFM.random(nfm, seed).weights)
        for name, rows in (("W", nfm.weights.get("W")), ("decoder", decoder)):
            if rows is not None:
                noise = stream(seed, f"inspect_weights.{name}").standard_normal(tuple(rows.shape), dtype=np.float32)
                unit = torch.nn.functional.normalize(torch.from_numpy(noise), dim=1)
                weights[name] = unit * rows.cpu().norm(dim=1, keepdim=True)
        yield weights


def _initial_norms(
    nfm: NFM, decoder: torch.Tensor | None, model: _Model, draw: int, random_state: int
) -> dict[str, np.ndarray]:
    """Norms of rows at random initialisation: of W and the decoder, normal entries with their root mean square."""
    norms = {"V rows": model.norms["V rows"]}
    for name, rows in (("W rows", nfm.weights.get("W")), ("decoder rows", decoder)):
        if rows is not None:
            n, d = rows.shape
            scale = float(rows.double().square().mean().sqrt())
            norms[name] = scale * np.sqrt(stream(random_state, f"inspect_weights.norms.{name}", draw).chisquare(d, n))
    return norms


def _gram(rows: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """Shares of the spectrum of rows, largest first, and the figures of spectrum and cosines."""
    x = rows.astype(float)
    values = np.linalg.eigvalsh(x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T)[::-1].clip(min=0)
    shares = values / values.sum() if values.any() else np.full(len(values), np.nan)
    summed = np.cumsum(shares)
    figures = {"top_share": float(shares[0]), "participation_ratio": participation_ratio(values)}
    figures |= {
        f"n{percent}": float(np.searchsorted(summed, percent / 100 - 1e-12) + 1) if values.any() else float("nan")
        for percent in (90, 95)
    }
    unit = torch.nn.functional.normalize(torch.from_numpy(np.ascontiguousarray(rows, np.float32)), dim=1)
    cosines = direction_cosines(unit)
    if cosines is None:
        return shares, figures
    # Σ cos² over all ordered pairs is ‖UᵀU‖², the pairs of a direction with itself included.
    u, n = unit.double().numpy(), cosines.n_features
    squares = (float(np.square(u.T @ u).sum()) - n) / (n * (n - 1))
    figures |= {
        "mean_cosine": cosines.mean,
        "mean_abs_cosine": cosines.mean_abs,
        "sd_cosine": float(np.sqrt(max(squares - cosines.mean**2, 0.0))),
        "max_cosine": cosines.maximum,
    }
    return shares, figures


def _table(trained: _Model, models: list[_Model]) -> Any:
    import pandas as pd

    rows, means = [], []
    for (name, statistic), figures in trained.figures.items():
        n, m = trained.sizes[name]
        null = {kind: np.array([model.figures[name, statistic][kind] for model in models]) for kind in figures}
        row: dict[str, Any] = {"vectors": name, "statistic": statistic, "n": n, "length": m}
        row |= {"undefined": trained.undefined.get((name, statistic), 0)} | figures
        row |= {f"null_{kind}": float(values.mean()) for kind, values in null.items()}
        row |= {"null_sd": float(null["mean"].std(ddof=1))}
        row["z"], row["p"] = _compared(figures["mean"], null["mean"])
        for kind, sign in (("min", -1), ("max", 1)) if "min" in figures else ():
            row[f"z_{kind}"], row[f"p_{kind}"] = _compared(figures[kind], null[kind], sign)
        if statistic == "mean_abs_cosine":
            row["expected"] = expected_abs(m)
        means.append(
            np.r_[figures["mean"], null["mean"]] if np.isfinite(row["p"]) else np.full(len(models) + 1, np.nan)
        )
        rows.append(row)
    return pd.DataFrame(rows).assign(p_fwer=_familywise(np.array(means).T), n_random=len(models))


def _compared(value: float, null: np.ndarray, sign: int = 0) -> tuple[float, float]:
    """z and p of a number beside those of random models: two-sided, or in the direction of `sign`.

    Both are NaN where the null keeps the number, and z where the null does not vary.
    """
    everything = np.r_[value, null]
    size = SAME * np.abs(everything).max()
    if not np.isfinite(everything).all() or np.ptp(everything) <= size:
        return float("nan"), float("nan")
    sd = null.std(ddof=1)
    z = float((value - null.mean()) / sd) if np.ptp(null) > size else float("nan")
    return z, rank_p(value, null, sign)


def _familywise(values: np.ndarray) -> np.ndarray:
    """p of every statistic, corrected for all, from values (models, statistics) of which the trained come first."""
    sd = values.std(axis=0, ddof=1)
    z = np.abs(values - values.mean(axis=0)) / np.where(sd > 0, sd, np.nan)
    ordered = np.sort(values, axis=0)
    spread = np.minimum(ordered[-2] - ordered[0], ordered[-1] - ordered[1])  # without the model at one of the ends
    tested = np.isfinite(z[0]) & (spread > SAME * np.abs(ordered).max(axis=0))
    p = np.full(len(tested), np.nan)
    if tested.any():
        largest = z[:, tested].max(axis=1)
        p[tested] = (largest[:, None] >= z[0, tested] - 1e-9).mean(axis=0)
    return p


def _features(trained: _Model, models: list[_Model], density: np.ndarray | None) -> Any:
    import pandas as pd

    n = trained.sizes["V rows"][0]
    columns: dict[str, np.ndarray] = {"feature": np.arange(n)}
    if density is not None:
        columns["density"] = density
    for name in FEATURE_VECTORS:
        for statistic in STATISTICS if name in trained.values else ():
            values = trained.values[name][statistic]
            kind, sign = ("min", -1) if statistic in LOWER else ("max", 1)
            extremes = sign * np.array([model.figures[name, statistic][kind] for model in models])
            kept = np.isnan(_compared(trained.figures[name, statistic][kind], sign * extremes, sign)[1])
            reached = len(extremes) - np.searchsorted(np.sort(extremes), sign * values - SAME * np.abs(values))
            p = np.where(np.isfinite(values) & ~kept, (reached + 1) / (len(extremes) + 1), np.nan)
            column = f"{name.split()[0]}_{statistic}"
            columns |= {column: values, f"{column}_p_fwer": p}
    return pd.DataFrame(columns)


def _coupling(
    trained: _Model, norms: list[dict[str, np.ndarray]], density: np.ndarray | None, random_state: int
) -> Any:
    import pandas as pd

    if "decoder rows" not in trained.norms:
        return pd.DataFrame()
    initial = [(model.get("W rows"), model["V rows"]) for model in norms]
    own = trained.norms
    return norm_coupling(
        own["decoder rows"], own.get("W rows"), own["V rows"], initial, density=density, random_state=random_state
    )


def _modes(trained: _Model, norms: list[dict[str, np.ndarray]], random_state: int) -> Any:
    import pandas as pd

    rows = []
    for name, values in trained.norms.items():
        found = bimodality(values**2, [model[name] ** 2 for model in norms], random_state=random_state)
        rows.append({"vectors": name, "quantity": "squared norm"} | found)
    return pd.DataFrame(rows)


def _spectra(trained: _Model, models: list[_Model]) -> Any:
    import pandas as pd

    parts = []
    for name, shares in trained.spectra.items():
        null = np.array([model.spectra[name] for model in models])
        parts.append(
            pd.DataFrame(
                {"vectors": name, "component": np.arange(1, len(shares) + 1), "share": shares}
                | {"null_mean": null.mean(0), "null_min": null.min(0), "null_max": null.max(0)}
            )
        )
    return pd.concat(parts, ignore_index=True)


def _quantiles(trained: _Model, models: list[_Model]) -> Any:
    import pandas as pd

    parts = []
    for (name, statistic), curve in trained.curves.items():
        null = np.array([model.curves[name, statistic] for model in models])
        parts.append(
            pd.DataFrame(
                {"vectors": name, "statistic": statistic, "quantile": QUANTILES, "value": curve}
                | {"null_mean": null.mean(0), "null_min": null.min(0), "null_max": null.max(0)}
            )
        )
    return pd.concat(parts, ignore_index=True)


def _decoder(nfm: NFM, dictionary: Dictionary) -> torch.Tensor:
    nfm.check(dictionary)
    if dictionary.directions is None:
        raise InvalidInput(f"inspect_weights: {dictionary} has no decoder directions; leave it out")
    return dictionary.directions.float()


def _density(nfm: NFM, density: np.ndarray | None) -> np.ndarray | None:
    if density is None:
        return None
    density = np.asarray(density, float)
    if density.shape != (nfm.n_features,):
        raise DataMismatch(f"inspect_weights: density has shape {density.shape}, expected ({nfm.n_features},)")
    if not ((density >= 0) & (density <= 1)).all():
        raise InvalidInput("inspect_weights: density must be shares of tokens, between 0 and 1")
    return density
