"""The methods paragraph: what was done, in sentences that can be pasted into an article."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neurollm.plotting import contrast_sides
from neurollm.reporting.formatting import count, decimal, exact, is_number, plural, proportion
from neurollm.reporting.sentences import method_phrase, tally

if TYPE_CHECKING:
    from neurollm.reporting.study import Study

REFERENCES = (
    "Hedges LV (1981). Distribution theory for Glass’s estimator of effect size and related estimators. "
    "Journal of Educational Statistics 6, 107–128.",
    "Nichols TE, Holmes AP (2002). Nonparametric permutation tests for functional neuroimaging: "
    "a primer with examples. Human Brain Mapping 15, 1–25.",
    "Phipson B, Smyth GK (2010). Permutation p-values should never be zero: calculating exact p-values "
    "when permutations are randomly drawn. Statistical Applications in Genetics and Molecular Biology 9, 39.",
)
_POOLING = {"mean": "averaged", "max": "reduced to their maximum", "sum": "summed", "last": "read at the last"}
_WINDOWS = {
    "content": "all tokens",
    "all": "all tokens",
    "target": "the tokens of the target",
}
_SINGLE = {"last": "the last token", "left:1": "the first token", "centre:1": "the middle token"}
_PLACES = {"left": "first", "centre": "middle"}
_STATISTICS = {
    "sign_flip": "a paired t statistic over items",
    "within_item": "the t statistic of the contrast in an additive model of items and levels",
    "whole_item": "a two-sample t statistic over items",
    "several": "the t statistic of the contrast of item means with pooled variance",
}
_REASONS = {"too few active items": "active in too few items"}
_SIZES = {
    "hedges_g_z": "g_z (mean item difference over its standard deviation, small-sample corrected)",
    "hedges_g": "g (difference of item means over the pooled standard deviation, small-sample corrected)",
}
_TRANSFORMS = {"log1p": "log(1 + x)", "binary": "active or not", "rank": "ranks"}


def methods_paragraph(study: Study) -> str:
    """Describe the study from its recorded facts; facts that were not recorded are left out."""
    sentences = [_stimuli(study), _features(study), _pooling(study), *_tests(study), _separation(study), _end(study)]
    return " ".join(sentence for sentence in sentences if sentence)


def _stimuli(study: Study) -> str:
    design, n = study.design, study.manifest.get("n_stimuli")
    levels = [str(level) for level in design.get("levels", [])]
    items = design.get("n_items")
    text = plural(n, "stimulus", "stimuli") if n else "The stimuli"
    if items:
        text += f" built on {plural(items, 'item')}"
    if design.get("factor"):
        text += f" varied the factor {design['factor']}"
        text += f" ({', '.join(levels)})" if levels else ""
    dropped = len(study.manifest.get("dropped") or [])
    return text + (f"; {plural(dropped, 'trial was', 'trials were')} dropped." if dropped else ".")


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
    tallies = [tally(result, study.alpha) for result in study.results.values()]
    numbers = sorted({one.tested for one in tallies}, reverse=True)
    tested = f"{' or '.join(count(number) for number in numbers)} tested features"
    reasons = sorted({why for result in study.results.values() for why, n in result.not_tested.items() if n})
    left_out = (
        f" Features were not tested when they were {' or '.join(_REASONS.get(why, why) for why in reasons)}."
        if reasons
        else ""
    )
    sizes = sorted({_SIZES[result.effect_size_kind] for result in study.results.values()})
    return [
        "Each feature was averaged within item and condition.",
        *_schemes(study),
        f"The family-wise error over the {tested} was controlled at {exact(study.alpha)} "
        f"by the distribution of the maximum statistic (Nichols & Holmes, 2002; Phipson & Smyth, 2010).{left_out}",
        f"Effect sizes are Hedges’ {' or '.join(sizes)} with 95% confidence intervals from the noncentral t "
        "distribution (Hedges, 1981).",
    ]


def _schemes(study: Study) -> list[str]:
    """Which contrasts were tested by which statistic and which shufflings."""
    groups: dict[str, list[str]] = {}
    for result in study.results.values():
        several = result.shuffling_kind == "whole_item" and sum(weight != 0 for weight in result.weights) > 2
        statistic = _STATISTICS["several" if several else result.shuffling_kind]
        formula = "the share of all possible shufflings" if result.exhaustive else "(b + 1)/(B + 1)"
        clause = (
            f"compared by {statistic}, with a null distribution from {method_phrase(result)} ({result.alternative}); "
            f"p values are {formula}"
        )
        positive, negative = contrast_sides(result)
        groups.setdefault(clause, []).append(f"{positive} with {negative}")
    return [f"The contrasts ({'; '.join(names)}) were {clause}." for clause, names in groups.items()]


def _separation(study: Study) -> str:
    if not any(study.controls.values()):
        return ""
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
