"""What a factorial study of interactions found, read from its folder and said in plain sentences."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.factorial import FactorialStudy
from neurollm.factorial.units import LASTING
from neurollm.plotting.components import effect_counts, in_order
from neurollm.reporting import formatting
from neurollm.reporting.study import Study

TYPE = "factorial_study"
SIZES = "sizes"
RANDOM, RANDOM_COMPONENT, RANDOM_SECONDARY = "random_nfm", "random_nfm_component", "random_nfm_secondary"
LABELS = {
    "features": "dictionary features",
    "interactions": "NFM dimensions",
    "secondary": "secondary features",
    "component_dictionary": "dictionary component",
    "component_linear": "linear component",
    "component_interaction": "interaction component",
    SIZES: "component sizes",
    RANDOM: "NFM dimensions, untrained embeddings",
    RANDOM_COMPONENT: "interaction component, untrained",
    RANDOM_SECONDARY: "secondary features, untrained embeddings",
    "raw_units": "raw units",
    "token_embeddings": "token embeddings",
    "random_network": "random network",
}
NOTES = {
    "features": "the code of the dictionary",
    "interactions": "B = Σ sᵢsⱼ vᵢ∘vⱼ over pairs of active features",
    "secondary": "a sparse dictionary of B",
    "component_dictionary": "units of x̂",
    "component_linear": "units of s·W + b, the refit of the dictionary’s decoder",
    "component_interaction": "units of g(B)",
    SIZES: "squared norm per token of each component",
    RANDOM: "the same codes, products with embeddings as they are before training",
    RANDOM_COMPONENT: "the same with a random read-out",
    RANDOM_SECONDARY: "the same training on B of untrained embeddings",
    "raw_units": "units of the same site, without the dictionary",
    "token_embeddings": "the words alone: layer 0, no context, no position",
    "random_network": "the same architecture with random weights, same site",
}
PARTNER = {
    "features": "raw_units",
    "interactions": RANDOM,
    "secondary": RANDOM_SECONDARY,
    "component_dictionary": "raw_units",
    "component_linear": "raw_units",
    "component_interaction": RANDOM_COMPONENT,
}
"""What a representation's kinds of unit are drawn beside."""
UNITS = {"interactions": "NFM dimensions", "component_interaction": "units of the interaction component"}


@dataclass(frozen=True, eq=False)
class Factorial:
    """The saved results of a factorial study.

    Attributes
    ----------
    study : Study
        Manifest, audit and configuration.
    studies : dict of str to FactorialStudy
        Of the representations, in order, and of the controls.
    reasons : dict of str to str
        Why there is no study of a representation.
    random : dict of str to list of dict
        What each draw of an untrained interaction model found, see `counts`, by control; empty without that control.
    shuffled : dict of str to list of dict
        The same of every shuffling of the labels, by representation; empty without that control.
    sizes : dict of str to float
        Mean squared norms on the stimuli: components, ``error``, ``rest``.
    secondary : str
        What the secondary dictionary explains, in a sentence.
    """

    study: Study
    studies: dict[str, FactorialStudy]
    reasons: dict[str, str]
    random: dict[str, list[dict[str, Any]]]
    shuffled: dict[str, list[dict[str, Any]]]
    sizes: dict[str, float]
    secondary: str

    @property
    def names(self) -> list[str]:
        """The representations."""
        return list(self.study.manifest["representations"])

    @property
    def failed(self) -> list[str]:
        """Checks of the stimulus audit that failed."""
        return [str(row.get("name")) for row in self.study.audit if row.get("status") == "fail"]

    @property
    def alpha(self) -> float:
        """Level of the tests."""
        return next(iter(self.studies.values())).alpha

    @property
    def interaction(self) -> str:
        """Name of the interaction."""
        return next(iter(self.studies.values())).interaction


def counts(study: FactorialStudy) -> dict[str, Any]:
    """What a study of two factors found, in numbers.

    Returns
    -------
    dict
        ``n_columns, n_candidates``; ``effects``: effect → [significant, chosen for it]; ``lasting``: columns chosen for
        the interaction that have one on all scales and are of a kind that no sum gives, whatever its scale (see
        `neurollm.factorial.units.LASTING`); ``kinds``: kind → number of candidates.
    """
    tests, units = study.tests, study.units()
    raw = tests[(tests["scale"] == "raw") & (tests["effect"] == study.interaction) & tests["chosen"]]
    mine = units[units["column"].isin(raw["column"])]
    return {
        "n_columns": study.n_columns,
        "n_candidates": len(study.candidates),
        "effects": {effect: list(pair) for effect, pair in effect_counts(study).items()},
        "lasting": int((mine["survives"] & mine["kind"].isin(LASTING)).sum()),
        "kinds": study.kinds(),
    }


def holds_factorial(folder: str | os.PathLike) -> bool:
    """Whether a folder is that of a factorial study of interactions."""
    try:
        return json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))["type"] == TYPE
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_factorial_results(folder: str | os.PathLike) -> Factorial:
    """Read what `neurollm run` left in the folder of a factorial study.

    Raises
    ------
    InvalidInput
        The folder holds no finished factorial study.
    DataMismatch
        A file in it is damaged.
    """
    import yaml

    folder = Path(folder)
    for name in ("manifest.json", "config.yaml", "sizes.json", "audit.json"):
        if not (folder / name).is_file():
            raise InvalidInput(
                f"{folder / name} is missing, so {folder} holds no finished factorial study: run it again."
            )
    try:
        manifest, audit, sizes = (_json(folder / f"{name}.json") for name in ("manifest", "audit", "sizes"))
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        study = Study(folder, manifest, {}, {}, audit, {}, {}, {}, yaml.safe_load(text), text)
        wanted = [*manifest["representations"], *study.config["controls"], RANDOM_COMPONENT, RANDOM_SECONDARY]
        studies, reasons = {}, {}
        for name in [name for name in LABELS if name in wanted]:
            where = folder / "factorial" / name
            if (where / "reason.json").is_file():
                reasons[name] = str(_json(where / "reason.json")["reason"])
            elif where.is_dir():
                studies[name] = FactorialStudy.load(where)
        random, shuffled = (
            {name: [one for one in found if one] for name, found in _json(folder / file, {}).items()}
            for file in ("random_nfm.json", "shuffled.json")
        )
        secondary = str(_json(folder / "secondary.json", {}).get("verdict", ""))
        found = Factorial(study, studies, reasons, random, shuffled, sizes, secondary)
        _ = found.interaction, manifest["nfm"]["rank"], sizes["error"], sizes["rest"], sizes["interaction"]
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, yaml.YAMLError) as error:
        raise DataMismatch(
            f"{folder}: the results of the factorial study are damaged ({error!r}): run it again."
        ) from None
    return found


def _json(path: Path, default: Any = None) -> Any:
    if default is not None and not path.is_file():
        return default
    return json.loads(path.read_text(encoding="utf-8"))


def factorial_verdict(folder: str | os.PathLike) -> list[str]:
    """What a factorial study found, in plain sentences, the interaction model first."""
    return verdict(read_factorial_results(folder))


def verdict(found: Factorial) -> list[str]:
    """Sentences: a failed audit, the interaction dimensions beside untrained ones, and the other representations."""
    told = []
    if found.failed:
        told.append(
            f"The stimulus audit fails ({', '.join(dict.fromkeys(found.failed))}): what follows may be due to these "
            "differences between the texts, not to the factors."
        )
    told.append(integration(found, "interactions"))
    if "component_interaction" in found.studies:
        told.append(integration(found, "component_interaction"))
    told += [_effects(found, name) for name in ("features", "secondary") if name in found.studies]
    told.append(_components(found))
    if found.shuffled:
        told.append(_shuffled(found))
    return told


def integration(found: Factorial, name: str) -> str:
    """Whether columns of the interaction model integrate the factors, beside the same of untrained models."""
    what = UNITS[name]
    if name not in found.studies:
        return f"The {what} could not be studied: {found.reasons.get(name, 'no reason was saved')}"
    own = counts(found.studies[name])
    n, lasting = own["effects"].get(found.interaction, [0, 0])[1], own["lasting"]
    sentence = (
        f"{lasting or 'None'} of the {n} {what} chosen for {found.interaction} {'have' if lasting > 1 else 'has'} a "
        f"lasting interaction (on the raw, log and rank scales, of kind {' or '.join(LASTING)})"
    )
    draws = [one["lasting"] for one in found.random.get(PARTNER[name]) or []]
    if not draws:
        doubt = " Without the control random_nfm nothing tells integration from co-activation." if lasting else ""
        return f"{sentence}.{doubt}"
    p = (1 + sum(one >= lasting for one in draws)) / (1 + len(draws))
    beside = (
        f"; with untrained embeddings it is {formatting.decimal(mean(draws), 1)} on average ({min(draws)} to "
        f"{max(draws)} in {formatting.plural(len(draws), 'draw')}"
    )
    if not lasting:
        return f"{sentence}{beside}): nothing here speaks for an integration of the two factors."
    beside += f", p {formatting.p_sentence(p)})"
    if p <= found.alpha:
        return f"{sentence}{beside}: more than products of features that are active together give by themselves."
    return (
        f"{sentence}{beside}. Co-activation of features can give as much by itself, so nothing shows that the "
        "interaction model learned it."
    )


def _effects(found: Factorial, name: str) -> str:
    """In how many columns of a representation each effect is."""
    own = counts(found.studies[name])
    told = [f"{effect} is found in {n} of {chosen}" for effect, (n, chosen) in own["effects"].items()]
    crossed = own["effects"].get(found.interaction, [0, 0])[0]
    lasting = f"; of these interactions {own['lasting'] or 'none'} last" + ("" if own["lasting"] > 1 else "s")
    return (
        f"{LABELS[name].capitalize()} ({formatting.count(own['n_columns'])}), on items that did not choose them: "
        f"{', '.join(told)}{lasting if crossed else ''}."
    )


def _components(found: Factorial) -> str:
    """How large the interaction component is, what the model explains, and what the components' sizes follow."""
    sizes, nfm = found.sizes, found.study.manifest["nfm"]
    share = sizes["interaction"] / sizes["error"] if sizes["error"] else float("nan")
    told = f"On the stimuli the interaction component has {formatting.percent(share)} of the squared norm of the "
    told += "dictionary’s error"
    explained = 1 - sizes["rest"] / sizes["error"] if sizes["error"] else float("nan")
    told += f", and the model explains {explained_share(explained)} of that error"
    if formatting.is_number(nfm.get("explained_validation")):
        told += f" (on validation documents {explained_share(nfm['explained_validation'])})"
    if SIZES not in found.studies:
        return f"{told}."
    raw, parts = found.studies[SIZES].verdicts, []
    units = found.studies[SIZES].units().set_index("column")
    for name in in_order(raw["column"]):
        effects = raw[(raw["column"] == name) & raw["significant"]]["effect"].tolist()
        kind = units.loc[name, "kind"]
        if kind not in LASTING:  # the squared norm of a sum has an interaction that is no integration
            effects = [f"{one} ({kind})" if one == found.interaction else one for one in effects]
        parts.append(f"of the {name} component {' and '.join(effects) or 'neither factor'}")
    return f"{told}. What the squared norms follow: {', '.join(parts)}."


def explained_share(value: Any) -> str:
    """A share of an error, which may be below zero."""
    if not formatting.is_number(value):
        return formatting.MISSING
    return formatting.percent(value) if value >= 0 else f"{formatting.decimal(100 * value, 1)}%"


def _shuffled(found: Factorial) -> str:
    n = max(len(draws) for draws in found.shuffled.values())
    means = [
        mean([sum(one[0] for one in draw["effects"].values()) for draw in draws]) for draws in found.shuffled.values()
    ]
    means = [value for value in means if formatting.is_number(value)]
    highest = max(means, default=float("nan"))
    return (
        f"With shuffled labels ({formatting.plural(n, 'shuffling')}) at most {formatting.decimal(highest, 1)} effects "
        "are found per representation, on average."
    )


def mean(values: Sequence[float]) -> float:
    """Of numbers; NaN of none."""
    return sum(values) / len(values) if values else float("nan")
