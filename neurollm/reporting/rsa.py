"""What a report says of an RSA of all features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.reporting.formatting import count, exact, p_number, plural

if TYPE_CHECKING:
    from neurollm.rsa import RSAMap, RSAResult

MOST_ROWS = 20
"""Features of each model's table; all are in ``rsa.parquet``."""
_COMPARISONS = {
    "pearson": "Pearson correlations",
    "cosine": "cosines",
    "whitened": "whitened cosines, which are the linear centred kernel alignment of the feature with the model,",
    "whitened_pearson": "whitened Pearson correlations",
    "half_rank": "correlations with the ranks of the model’s distances",
    "spearman": "Spearman correlations",
    "rho_a": "ρ_a",
    "tau_a": "Kendall’s τ_a",
}
_COLUMNS = ("r", "r_over_ceiling", "z", "p", "p_fwer", "n_active")


def rsa_verdict(result: RSAResult, model: str, alpha: float) -> str:
    """One sentence about a model, without its name."""
    return result.verdict(model, alpha).removeprefix(f"{model}: ")


def rsa_section(result: RSAResult, alpha: float, top: int) -> dict[str, Any]:
    """Everything the page shows about RSA."""
    from neurollm.plotting import plot_rsa
    from neurollm.reporting.svg import figure_svg

    told = "; ".join(f"{one.model} {_found(one, alpha)} of {int(one.valid.sum())}" for one in result.maps)
    title = f"Scores of all features for each model RDM; significant features: {told}."
    return {
        "result": result,
        "figure": figure_svg(plot_rsa(result, alpha), "rsa", title),
        "models": [_model(result, one, alpha, min(top, MOST_ROWS)) for one in result.maps],
    }


def _model(result: RSAResult, one: RSAMap, alpha: float, top: int) -> dict[str, Any]:
    rows = [
        {"feature": result.feature[place], "significant": bool(one.p_fwer[place] <= alpha)}
        | {name: getattr(one, name)[place].item() for name in _COLUMNS}
        for place in result.strongest(one.model, top)
    ]
    return {
        "map": one,
        "verdict": rsa_verdict(result, one.model, alpha),
        "found": _found(one, alpha),
        "rows": rows,
        "hopeless": int((one.valid & (one.smallest_p_active > alpha)).sum()) if one.n_perm else 0,
    }


def _found(one: RSAMap, alpha: float) -> int:
    return int((one.valid & (np.nan_to_num(one.p_fwer, nan=1.0) <= alpha)).sum())


def rsa_warnings(result: RSAResult, alpha: float) -> list[str]:
    """Models whose test could not have succeeded."""
    return [
        f"RSA, {one.model}: the smallest p that {plural(one.n_perm, 'shuffling')} allow is "
        f"{p_number(one.smallest_p, alpha)}, so nothing could have been significant."
        for one in result.maps
        if one.n_perm and one.smallest_p > alpha
    ]


def rsa_methods(result: RSAResult, alpha: float) -> list[str]:
    """Sentences about how it was done."""
    models = "; ".join(f"{one.model}: {one.description}" for one in result.maps)
    item = result.item or "trial"
    sentences = [
        f"Representational similarity analysis (Kriegeskorte et al., 2008) compared each feature’s {result.distance} "
        f"distances between {item} × condition means with model dissimilarity matrices ({models}) by "
        f"{_COMPARISONS[result.comparison]}."
    ]
    if result.nuisance:
        sentences.append(
            f"{', '.join(result.nuisance)} {'was' if len(result.nuisance) == 1 else 'were'} held constant by "
            "regression over pairs, with which the test is approximate."
        )
    if any(one.n_perm for one in result.maps):
        numbers = sorted({("all " if one.exhaustive else "") + count(one.n_perm) for one in result.maps})
        sentences.append(
            f"Its p values ({result.alternative}) come from {' or '.join(numbers)} rearrangements of the model’s rows "
            "(Mantel, 1967) among those that the design allows; scores were divided by the standard deviation of their "
            "own permutation distribution, and the family-wise error over the features of a model was controlled "
            f"at {exact(alpha)} by the largest of them (Nichols & Holmes, 2002)."
        )
    if result.min_active:
        sentences.append(f"Features active in fewer than {plural(result.min_active, 'row')} were left out of RSA.")
    return sentences
