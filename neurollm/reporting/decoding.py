"""What a report says of decoding: a few features, their controls, and the texts alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import DataMismatch
from neurollm.reporting.formatting import auroc, count, interval, is_number, p_sentence, plural, proportion
from neurollm.reporting.sentences import CHANCE, control_name, representation_name
from neurollm.validation import several

if TYPE_CHECKING:
    from pathlib import Path

    from neurollm.reporting.study import Study

FIELDS = (
    *("sides", "unit", "n_units", "n_trials", "n_folds", "estimator", "selector", "n_features", "p", "n_perm"),
    *("exhaustive", "null_scores", "stability", "stability_chance", "panel", "rows"),
)
_BASELINES = {
    "words": "the words alone",
    "bigrams": "pairs of neighbouring words",
    "length": "the length of the texts",
    "punctuation": "their punctuation",
}
_OF_WORDS = ("words", "bigrams", "length", "punctuation", "token_embeddings", "random_network")
"""Rows that know the texts and no trained context."""
_ESTIMATORS = {
    "logistic_l1": "logistic regression with an L1 penalty",
    "logistic_l2": "logistic regression with an L2 penalty",
    "svc_linear": "a linear support vector machine",
    "ridge": "a ridge classifier",
    "lda": "linear discriminant analysis",
    "naive_bayes": "Gaussian naive Bayes",
    "svc_rbf": "a support vector machine with a Gaussian kernel",
}
_SELECTORS = {
    "rsa_categorical": "the correlation of their distances with those of the two sides (RSA)",
    "rsa_discriminative": "the correlation of their distances with those that set one side apart (RSA)",
    "rsa_coherence": "the correlation of their distances with those of unequal coherence (RSA)",
    "mean_difference": "the difference of means",
    "welch_t": "Welch’s t",
    "auroc": "AUROC",
    "l1_path": "their entry into the lasso path",
    "mutual_information": "mutual information",
    "maximum_activation": "maximum activation, which compares nothing",
    "random": "a random order",
}


def checked(records: dict[str, Any], path: Path) -> dict[str, Any]:
    """The contents of ``decode.json``.

    Raises
    ------
    DataMismatch
        An entry has not the shape that a run writes.
    """
    for name, record in records.items():
        whole = isinstance(record, dict) and (record.get("reason") or (record.keys() >= set(FIELDS) and record["rows"]))
        if not whole:
            raise DataMismatch(f"{path}: the entry of contrast {name!r} is damaged: run the study again.")
    return records


def decode_verdict(record: dict[str, Any], alpha: float) -> str:
    """What was decoded, in one sentence."""
    if record.get("reason"):
        return f"Not decoded, because {record['reason']}."
    positive, negative = record["sides"]
    row, chosen = record["rows"][0], record["selector"] is not None
    by = plural(record["n_features"], "feature") if chosen else "all features together"
    verb = "tells" if chosen and record["n_features"] == 1 else "tell"
    found = (
        f"AUROC {auroc(row)} and balanced accuracy {proportion(row['balanced_accuracy'])} on unseen trials of "
        f"{plural(record['n_units'], record['unit'])} ({record['n_folds']} folds)"
    )
    if not record["n_perm"]:
        return f"{positive} against {negative} from {by}: {found}; nothing was permuted, so there is no p."
    reached = int((np.array(record["null_scores"]) >= row["auroc"] - 1e-12).sum())
    of = f"all {count(record['n_perm'])} possible" if record["exhaustive"] else count(record["n_perm"])
    runs = f"with exchanged labels {count(reached)} of {of} runs of the whole procedure do as well"
    told = f"{found}; {runs} (p {p_sentence(record['p'], alpha)})."
    if is_found(record, alpha):
        return f"{by[:1].upper()}{by[1:]} {verb} {positive} from {negative}: {told}"
    return f"Nothing shows that {by} {verb} {positive} from {negative}: {told}"


def is_found(record: dict[str, Any], alpha: float) -> bool:
    """Whether the permutation test succeeded."""
    return is_number(record.get("p")) and record["p"] <= alpha


def rivals_verdict(record: dict[str, Any], alpha: float, controls: list[dict[str, Any]] = ()) -> str:
    """Whether controls and the texts alone do as well, by the intervals of the paired differences.

    `controls` are the rows in which each control is judged by all its columns, with the same items: a panel of a few
    may sell it short.
    """
    if record.get("reason"):
        return ""
    study, *others = record["rows"]
    others = [row for row in others if is_number(row.get("difference"))]
    if not is_found(record, alpha):
        return f"Beside it: {'; '.join(f'{_name(row)} {auroc(row)}' for row in others)}."
    ahead = [row for row in others if row["difference_high"] < 0]
    behind = [row for row in others if row["difference_low"] > 0]
    level = [row for row in others if row not in ahead and row not in behind]
    whole = [row for row in controls if row.get("representation") in _OF_WORDS and is_number(row.get("auroc"))]
    whole = [] if record["selector"] is None else whole
    parts = [f"Better than the features: {_series(ahead)}."] if ahead else []
    parts += [f"No difference from the features is shown for {_series(level)}."] if level else []
    parts += [f"The features do better than {_series(behind)}."] if behind else []
    if whole:
        n = count(record["n_features"])
        parts.append(f"With all of their columns instead of {n}, controls reach: {_series(whole)}.")
    of_words = [row for row in (*ahead, *level) if row["representation"] in _OF_WORDS and row["ci_low"] > CHANCE]
    if of_words or any(row["auroc"] >= study["ci_low"] for row in whole):  # not paired, so read cautiously
        parts.append("So nothing here shows that telling these sides apart takes more than the words.")
    return " ".join(parts)


def _series(rows: list[dict[str, Any]]) -> str:
    """Names with their AUROCs, the highest first."""
    told = [f"{_name(row)} ({auroc(row)})" for row in sorted(rows, key=lambda row: -row["auroc"])]
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"


def _name(row: dict[str, Any]) -> str:
    if row.get("kind") == "baseline":
        return _BASELINES.get(row["representation"], representation_name(row))
    return control_name(row)


def decode_sections(study: Study, few: bool = True) -> list[dict[str, Any]]:
    """Everything the page shows about each contrast that was decoded; figures if there are `few`."""
    return [
        told | ({} if told["record"].get("reason") else _shown(told["record"], number if few else None))
        for number, told in enumerate(decode_told(study), start=1)
    ]


def decode_told(study: Study) -> list[dict[str, Any]]:
    """What is said about each contrast that was decoded."""
    return [
        {
            "name": name,
            "record": record,
            "verdict": decode_verdict(record, study.alpha),
            "rivals": rivals_verdict(record, study.alpha, _whole(study, name, record)),
            "found": is_found(record, study.alpha),
        }
        for name, record in study.decode.items()
    ]


def _whole(study: Study, name: str, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Control rows of the contrast, if they were cross-validated over the same units."""
    same = record.get("unit") == (study.design.get("item") or "trial")
    return study.controls.get(name) or [] if same else []


def _shown(record: dict[str, Any], number: int | None) -> dict[str, Any]:
    from neurollm.plotting import plot_controls
    from neurollm.reporting.svg import figure_svg

    rows = [row | {"representation": representation_name(row), "difference_text": _difference(row)}
            for row in record["rows"]]  # fmt: skip
    described = "; ".join(f"{row['representation']} {auroc(row)}" for row in rows)
    title = f"AUROC of decoding: {described}."
    return {
        "rows": rows,
        "figure": None if number is None else figure_svg(plot_controls(rows), f"k{number}", title),
        "has_patterns": any(is_number(row["pattern"]) for row in record["panel"]),
        "chance": float(np.mean(record["null_scores"])) if record["null_scores"] else None,
        "units": several(record["unit"]),
    }


def _difference(row: dict[str, Any]) -> str:
    if not is_number(row.get("difference")):
        return ""
    value = row["difference"]
    sign = "+" if value >= 0.005 else ""
    low, high = row["difference_low"], row["difference_high"]
    return f"{sign}{proportion(value)} {interval(low, high, bounded=True)}"


def decode_warnings(study: Study) -> list[str]:
    """Contrasts whose test could not have succeeded."""
    return [
        f"Decoding, {name}: {plural(record['n_perm'], 'arrangement')} of the labels exist, so nothing could have been "
        "significant."
        for name, record in study.decode.items()
        if record.get("exhaustive") and 1 / record["n_perm"] > study.alpha
    ]


def decode_methods(study: Study) -> list[str]:
    """Sentences about how it was done; what all contrasts share is read from the first."""
    records = [record for record in study.decode.values() if not record.get("reason")]
    if not records:
        return []
    first, unit = records[0], several(records[0]["unit"])
    sentences = [
        f"The two sides of each contrast were decoded by {_ESTIMATORS[first['estimator']]} from {_choice(first)}, in "
        f"{' or '.join(sorted({str(record['n_folds']) for record in records}))} folds of {unit}, all trials of a "
        f"{first['unit']} staying on one side of every split; features, their scaling and the penalty were chosen in "
        f"the training part alone. AUROC compares trials of the same fold; 95% intervals come from resamples of {unit}."
    ]
    if any(record["n_perm"] for record in records):
        runs = " or ".join(sorted({count(record["n_perm"]) for record in records if record["n_perm"]}))
        sentences.append(
            f"The p value of decoding is that of {runs} runs of the whole procedure with exchanged labels (Ojala & "
            "Garriga, 2010, test 1)."
        )
    if any(row["kind"] == "control" for row in first["rows"]):
        sentences.append("Controls were decoded in the same way, but for the permutations.")
    sentences.append(
        "Words and pairs of words were decoded by naive Bayes, length and punctuation by ridge classifiers, all in the "
        f"same folds; differences between AUROCs are paired over {unit} and not corrected for their number."
    )
    if any(is_number(row["pattern"]) for record in records for row in record["panel"]):
        sentences.append("Panels are described by activation patterns instead of weights (Haufe et al., 2014).")
    return sentences


def _choice(record: dict[str, Any]) -> str:
    if record["selector"] is None:
        return "all features"
    return f"{plural(record['n_features'], 'feature')} chosen by {_SELECTORS[record['selector']]}"
