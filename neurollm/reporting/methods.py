"""The methods paragraph: what was done, in sentences that can be pasted into an article."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neurollm.plotting.sides import contrast_sides, has_sides, joined
from neurollm.reporting.decoding import decode_methods
from neurollm.reporting.formatting import count, decimal, exact, is_number, plural, proportion
from neurollm.reporting.rsa import rsa_methods
from neurollm.reporting.sentences import FDR_NAMES, P_METHODS, method_phrase, tally
from neurollm.validation import several

if TYPE_CHECKING:
    from neurollm.glm import ContrastResult
    from neurollm.reporting.study import Study

_POOLING = {"mean": "averaged", "max": "reduced to their maximum", "sum": "summed", "last": "read at the last"}
_WINDOWS = {
    "content": "all tokens",
    "all": "all tokens",
    "target": "the tokens of the target",
}
_SINGLE = {"last": "the last token", "left:1": "the first token", "centre:1": "the middle token"}
_PLACES = {"left": "first", "centre": "middle"}
_P_SOURCES = {
    "pearson3": "Winkler et al., 2016",
    "beta": "Pitman, 1938",
    "saddlepoint": "Robinson, 1982; Booth & Butler, 1990",
}
_FDR_SOURCES = {
    "bh": "Benjamini & Hochberg, 1995",
    "by": "Benjamini & Yekutieli, 2001",
    "bky": "Benjamini, Krieger & Yekutieli, 2006",
}
_REASONS = {"too few active items": "active in too few items"}
_SIZES = {
    "hedges_g_z": "Hedges’ g_z (mean item difference over its standard deviation, small-sample corrected) with 95% "
    "confidence intervals from the noncentral t distribution (Hedges, 1981)",
    "hedges_g": "Hedges’ g (the effect over the pooled residual standard deviation, small-sample corrected) with "
    "95% confidence intervals from the noncentral t distribution (Hedges, 1981)",
    "partial_r": "partial correlations with 95% confidence intervals from the noncentral t distribution",
    "partial_eta2": "partial η² with 95% confidence intervals from the noncentral F distribution (Steiger, 2004)",
}
_TRANSFORMS = {"log1p": "log(1 + x)", "binary": "active or not", "rank": "ranks"}


def methods_paragraph(study: Study) -> str:
    """Describe the study from its recorded facts; facts that were not recorded are left out."""
    sentences = [_stimuli(study), _features(study), _pooling(study), *_tests(study), _separation(study)]
    if study.rsa is not None:
        sentences += rsa_methods(study.rsa, study.alpha)
    sentences += [*decode_methods(study), _end(study)]
    return " ".join(sentence for sentence in sentences if sentence)


def _stimuli(study: Study) -> str:
    design, n = study.design, study.manifest.get("n_stimuli")
    items, factors = design.get("n_items"), _factors(design)
    text = plural(n, "stimulus", "stimuli") if n else "The stimuli"
    if items:
        text += f" built on {plural(items, 'item')}"
    if design.get("formula"):
        text += f" were modelled by the formula “{design['formula']}”"
    elif factors:
        text += f" varied the {'factor' if len(factors) == 1 else 'factors'} {' and '.join(factors)}"
    dropped = len(study.manifest.get("dropped") or [])
    return text + (f"; {plural(dropped, 'trial was', 'trials were')} dropped." if dropped else ".")


def _factors(design: dict[str, Any]) -> list[str]:
    """Every factor with its levels."""
    return [
        f"{name} ({', '.join(map(str, levels))})" if levels else str(name)
        for name, levels in (design.get("variables") or {}).items()
    ]


def _features(study: Study) -> str:
    model, dictionary = study.manifest.get("model") or {}, study.manifest.get("dictionary") or {}
    if not model.get("name"):
        return ""
    text = f"Activations of the language model {model['name']}"
    random_init = model.get("random_init")
    if random_init is not None and random_init is not False:
        text += ", with randomly initialised weights,"
    text += f" were recorded at {study.site}" if study.site else " were recorded"
    if dictionary.get("n_features"):
        kind = dictionary.get("architecture")
        text += f" and encoded with a dictionary of {count(dictionary['n_features'])} features"
        text += f" ({kind})" if kind else ""
    ev = study.dictionary.get("ev")
    return text + (f", which explains {100 * ev:.1f}% of their variance." if is_number(ev) else ".")


def _pooling(study: Study) -> str:
    settings = study.settings
    if "pool" not in settings:
        return ""
    pool, tokens = str(settings["pool"]), str(settings.get("tokens", "content"))
    if pool == "none":
        return f"Feature activations were kept for every token of the window “{tokens}”."
    if tokens in _SINGLE:
        text = f"Feature activations were read at {_SINGLE[tokens]} of each stimulus"
    else:
        text = f"Feature activations were {_POOLING.get(pool, 'pooled (' + pool + ')')}"
        text += f" {'of' if pool == 'last' else 'over'} {_window(tokens)} of each stimulus"
    text += "; special tokens were included" if tokens == "all" else "; special tokens were left out"
    transform = settings.get("transform", "raw")
    shown = _TRANSFORMS.get(str(transform), str(transform))
    return text + (f"; values were transformed ({shown})." if transform != "raw" else ".")


def _window(tokens: str) -> str:
    """A token window in words."""
    kind, _, n = tokens.partition(":")
    if n.isdigit() and kind in _PLACES:
        return f"the {_PLACES[kind]} {n} tokens"
    return _WINDOWS.get(tokens, f"the window “{tokens}”")


def _tests(study: Study) -> list[str]:
    """One clause for every way a contrast was tested, then what holds for all."""
    if not study.results:
        return []
    results = list(study.results.values())
    reasons = sorted({why for result in results for why, n in result.not_tested.items() if n})
    told = " or ".join(_REASONS.get(why, why) for why in reasons)
    return [
        f"Each feature was averaged within {results[0].exchange.unit} and condition.",
        *_schemes(results),
        *_uncorrected(results),
        *_corrected(study, results),
        f"Features were not tested when they were {told}." if told else "",
        f"Effect sizes are {_shared(results, _SIZES, 'effect_size_kind')}.",
    ]


def _schemes(results: list[ContrastResult]) -> list[str]:
    """Which contrasts were tested by which statistic and which shufflings."""
    groups: dict[str, list[str]] = {}
    for result in results:
        clause = f"tested by {_statistic(result)}"
        if result.exchange.n_perm:
            clause += f", with a null distribution from {method_phrase(result)}{_kept(result)}"
        clause += "" if result.is_f else f" ({result.alternative})"
        asked = " with ".join(contrast_sides(result.contrast)) if has_sides(result) else result.name
        groups.setdefault(clause, []).append(asked)
    return [
        f"The {'contrast' if len(names) == 1 else 'contrasts'} ({'; '.join(names)}) "
        f"{'was' if len(names) == 1 else 'were'} {clause}."
        for clause, names in groups.items()
    ]


def _statistic(result: ContrastResult) -> str:
    """The statistic in words."""
    unit, kind, q = result.exchange.unit, result.exchange.kind, result.contrast.rank
    if result.stat_kind == "welch":
        text = f"Welch’s t statistic with a variance of its own for each group of {several(unit)} (Welch, 1947)"
    elif result.stat_kind == "hc3":
        errors = "heteroscedasticity-consistent standard errors (HC3; MacKinnon & White, 1985)"
        text = f"a t statistic over {several(unit)} with {errors}"
    elif result.is_f:
        rows = f"{several(unit)} and levels" if kind == "within_item" else several(unit)
        text = f"an F statistic with {q} numerator degrees of freedom in a linear model of {rows}"
    elif not has_sides(result):
        text = "the t statistic of a coefficient in a linear model"
    else:
        groups = sum(weight != 0 for weight in result.contrast.weights[0])
        text = {
            "sign_flip": f"a paired t statistic over {several(unit)}",
            "within_item": f"the t statistic of the contrast in an additive model of {several(unit)} and levels",
            "whole_item": f"a two-sample t statistic over {several(unit)}"
            if groups == 2
            else f"the t statistic of the contrast of {unit} means with pooled variance",
        }[kind]
    if result.transform == "rank":
        text += ", computed on ranks"
    return text


def _kept(result: ContrastResult) -> str:
    """That residuals were shuffled."""
    if not result.exchange.residuals:
        return ""
    return " of the residuals of what was held constant (Freedman & Lane, 1983)"


def _uncorrected(results: list[ContrastResult]) -> list[str]:
    """Where p and q come from."""
    sources = {
        name: text + (f" ({_P_SOURCES[name]})" if name in _P_SOURCES else "") for name, text in P_METHODS.items()
    }
    rates = {name: f"{text} ({_FDR_SOURCES[name]})" for name, text in FDR_NAMES.items()}
    return [
        f"Uncorrected p values are those of {_shared(results, sources, 'p_method')}; q values are p values adjusted "
        f"for the false discovery rate by the method of {_shared(results, rates, 'fdr')}."
    ]


def _shared(results: list[ContrastResult], words: dict[str, str], field: str) -> str:
    """What all contrasts have in common, or which of them have what."""
    names: dict[str, list[str]] = {}
    for result in results:
        names.setdefault(getattr(result, field), []).append(result.name)
    if len(names) == 1:
        return words.get(next(iter(names)), next(iter(names)))
    return "; ".join(f"{words.get(kind, kind)}, for {joined(which)}" for kind, which in names.items())


def _corrected(study: Study, results: list[ContrastResult]) -> list[str]:
    """What was controlled over features, and how."""
    numbers = sorted({tally(result, study.alpha).tested for result in results}, reverse=True)
    tested = f"{' or '.join(count(number) for number in numbers)} tested features"
    permuted = [result for result in results if result.exchange.n_perm]
    if not permuted:
        return [f"The false discovery rate over the {tested} was controlled at {exact(study.alpha)}."]
    exhaustive = {result.exchange.exhaustive for result in permuted}
    formulas = [
        text
        for used, text in ((False, "(b + 1)/(B + 1)"), (True, "the share of all possible shufflings"))
        if used in exhaustive
    ]
    tail = (
        ", the smallest of them from a generalised Pareto distribution fitted to the largest statistics "
        "(Winkler et al., 2016)"
        if any(result.tail == "gpd" for result in permuted)
        else ""
    )
    return [
        f"The family-wise error over the {tested} was controlled at {exact(study.alpha)} by the distribution of the "
        "maximum statistic (Nichols & Holmes, 2002; Westfall & Young, 1993, for stepping down); "
        f"these p values are {' or '.join(formulas)} (Phipson & Smyth, 2010){tail}."
    ]


def _separation(study: Study) -> str:
    rows = [row for rows in study.controls.values() for row in rows]
    if not rows:
        return ""
    if not any(is_number(row.get("auroc")) for row in rows):
        return "The controls passed through the same steps."
    return (
        "How well a representation as a whole separates the conditions is the out-of-fold AUROC of an L2-regularised "
        "logistic regression, with all trials of an item in the same fold; 95% intervals are of "
        "Wilson’s type, with the number of independent items that an item jackknife implies. "
        "The controls passed through the same steps."
    )


def _end(study: Study) -> str:
    versions, seed = study.manifest.get("versions") or {}, study.manifest.get("seed")
    text = f"Analyses were done with neurollm {versions.get('neurollm') or ''}".rstrip()
    return text + (f" (seed {seed})." if seed is not None else ".")


def dictionary_facts(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and meaning of every recorded measure of the dictionary's quality."""
    return [
        (name, show(metrics[key]), meaning) for key, name, show, meaning in _MEASURES if is_number(metrics.get(key))
    ]  # fmt: skip


def _dead(value: float) -> str:
    """Dead features come as a share or as a number."""
    return f"{100 * value:.1f}%" if isinstance(value, float) and value <= 1 else count(value)


_MEASURES = (
    (
        "ev",
        "Explained variance",
        lambda v: proportion(v, 3),
        "share of activation variance that is restored",
    ),
    ("l0", "L0", lambda v: decimal(v, 1), "features active per token, mean"),
    ("dead", "Dead features", _dead, "never active on the evaluation tokens"),
    (
        "ce_recovered",
        "CE recovered",
        lambda v: proportion(v, 3),
        "share of the loss gap to mean ablation closed",
    ),
    ("delta_ce", "ΔCE", lambda v: decimal(v, 3), "rise of the next-token loss (nats) with the dictionary in place"),
    ("n_tokens", "Tokens", count, "evaluation tokens"),
)
