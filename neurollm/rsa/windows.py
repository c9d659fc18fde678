"""Tokens of every trial, lined up at an event: which positions a trial has is a mask, never a padding of zeros."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.random import stream
from neurollm.validation import listed, shown

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from neurollm.masking import FeatureMasker
    from neurollm.stimuli import StimulusSet

ALIGN = ("start", "end", "target")


@dataclass(frozen=True, eq=False)
class Windows:
    """Trials by positions, made by `from_trials`.

    Attributes
    ----------
    data : CSR or ndarray, shape (n_tokens, V)
    rows : ndarray of int, shape (n_trials, T)
        Row of `data` that holds a trial's token at a position; −1 where the trial has none.
    positions : ndarray of int, shape (T,)
        Tokens from the event.
    obs : DataFrame, n_trials rows
    feature : ndarray, shape (V,)
        Feature ids.
    align : {"start", "end", "target"}
    dropped : tuple of str
        Stimuli without the event, or without any token in the span.
    """

    data: Any
    rows: np.ndarray
    positions: np.ndarray
    obs: pd.DataFrame
    feature: np.ndarray
    align: str
    dropped: tuple[str, ...]

    @classmethod
    def from_trials(
        cls,
        trials: AnnData,
        align: str = "start",
        span: tuple[int, int] = (0, 4),
        anchors: Mapping[str, int] | None = None,
    ) -> Windows:
        """Line up trials that keep their tokens apart.

        Parameters
        ----------
        trials : AnnData
            From a `FeatureMasker` with ``pool="none"``: one row per token, with the columns stimulus_id and position.
        align : {"start", "end", "target"}
            The event: a trial's first or last token, or the first token of its target.
        span : (int, int)
            First and last position, counted in tokens from the event (which is 0); both are included.
        anchors : mapping from stimulus_id to int, optional
            Token position of the event, needed for ``"target"`` (see `target_anchors`). Stimuli that are not in it are
            dropped.

        Returns
        -------
        Windows

        Raises
        ------
        InvalidInput
            Trials are pooled, the span is not one, or no trial has a token in it.
        DataMismatch
            A stimulus holds a position twice.

        Examples
        --------
        >>> import pandas as pd
        >>> from anndata import AnnData
        >>> obs = pd.DataFrame({"stimulus_id": ["s1", "s1", "s1", "s2"], "position": [1, 2, 3, 1]})
        >>> trials = AnnData(np.arange(4.0)[:, None], obs=obs.set_axis(list("abcd")))
        >>> Windows.from_trials(trials, align="end", span=(-1, 0)).rows.tolist()
        [[1, 2], [-1, 3]]
        """
        first, last = _span(span)
        obs, stimuli, stimulus, position = token_table(trials.obs)
        origin = _origin(align, anchors, stimuli, stimulus, position)
        offset = position - origin[stimulus] - first
        inside = np.isfinite(offset) & (offset >= 0) & (offset <= last - first)
        rows = np.full((len(stimuli), last - first + 1), -1)
        rows[stimulus[inside], offset[inside].astype(int)] = np.flatnonzero(inside)
        if (rows >= 0).sum() != inside.sum():
            raise DataMismatch("windows: a stimulus holds the same token position twice; are its ids unique?")
        kept = (rows >= 0).any(axis=1)
        if not kept.any():
            raise InvalidInput(f"windows: no trial has a token at the positions {first} to {last} from its {align}.")
        data = trials.X.tocsr() if sparse.issparse(trials.X) else np.asarray(trials.X)
        feature = trials.var["feature"].to_numpy() if "feature" in trials.var else np.arange(trials.n_vars)
        dropped = tuple(np.array(stimuli)[~kept].tolist())
        return cls(data, rows[kept], np.arange(first, last + 1), obs[kept], feature, align, dropped)

    @property
    def present(self) -> np.ndarray:
        """Which trials have which positions, bool, shape (n_trials, T)."""
        return self.rows >= 0

    @property
    def n_trials(self) -> np.ndarray:
        """Trials at every position, shape (T,)."""
        return self.present.sum(axis=0)

    def at(self, position: int) -> tuple[Any, np.ndarray]:
        """Features of the trials that have a position, and the numbers of these trials.

        Parameters
        ----------
        position : int
            From the event.

        Returns
        -------
        X : CSR or ndarray, shape (n, V)
        trials : ndarray of int, shape (n,)
        """
        rows = self.rows[:, self._column(position)]
        return self.data[rows[rows >= 0]], np.flatnonzero(rows >= 0)

    def take(self, features: Any) -> Windows:
        """The windows of some features, by their ids."""
        where = {feature: column for column, feature in enumerate(self.feature.tolist())}
        wanted = np.atleast_1d(np.asarray(features)).tolist()
        unknown = [feature for feature in wanted if feature not in where]
        if unknown or not wanted:
            raise InvalidInput(
                f"windows: {listed(unknown)} is no feature." if unknown else "windows: no feature given."
            )
        columns = [where[feature] for feature in wanted]
        return replace(self, data=self.data[:, columns], feature=self.feature[columns])

    def shuffled(self, random_state: int = 0) -> Windows:
        """The tokens of every trial in another order: a control in which only their order is lost.

        Parameters
        ----------
        random_state : int, default=0

        Returns
        -------
        Windows
        """
        rows = self.rows.copy()
        for trial, own in enumerate(rows):
            here = np.flatnonzero(own >= 0)
            rows[trial, here] = own[stream(random_state, "token_order", trial).permutation(here)]
        return replace(self, rows=rows)

    def to_frame(self) -> pd.DataFrame:
        """``position, n_trials, n_missing``: how many trials have each position, and how many have not."""
        import pandas as pd

        return pd.DataFrame(
            {"position": self.positions, "n_trials": self.n_trials, "n_missing": len(self.rows) - self.n_trials}
        )

    def _column(self, position: int) -> int:
        found = np.flatnonzero(self.positions == position)
        if not found.size:
            raise InvalidInput(
                f"windows: there is no position {shown(position)}; they go from {self.positions[0]} to "
                f"{self.positions[-1]}."
            )
        return int(found[0])


def target_anchors(masker: FeatureMasker, stimuli: StimulusSet) -> dict[str, int]:
    """Token position at which the target of every stimulus begins; stimuli without a target are left out.

    Parameters
    ----------
    masker : FeatureMasker
        Its model and dictionary are used.
    stimuli : StimulusSet

    Returns
    -------
    dict from stimulus_id to int

    Examples
    --------
    >>> from neurollm import FeatureMasker, StimulusSet, load_dictionary, load_model
    >>> stimuli = StimulusSet.from_conditions({"win": ["She won."], "loss": ["She lost."]})
    >>> target_anchors(FeatureMasker(load_model("demo"), load_dictionary("demo")), stimuli)  # no targets
    {}
    """
    from neurollm.masking import FeatureMasker

    found = FeatureMasker(masker.model, masker.dictionary, tokens="target", verbose=0).fit().positions(stimuli)
    ids = stimuli.table["stimulus_id"].astype(str)
    return {name: int(where[0]) for name, where in zip(ids, found, strict=True) if len(where)}


def _span(span: Any) -> tuple[int, int]:
    try:
        first, last = (int(end) for end in span)
        whole = (first, last) == tuple(span)
    except (TypeError, ValueError):
        whole = False
    if not whole or first > last:
        raise InvalidInput(f"windows: span must be the first and the last position, as (0, 4), found {shown(span)}.")
    return first, last


def token_table(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str], np.ndarray, np.ndarray]:
    """Take apart the table of trials that keep their tokens apart.

    Parameters
    ----------
    table : DataFrame, n_tokens rows

    Returns
    -------
    obs : DataFrame
        One row per stimulus, in order of appearance.
    stimuli : list of str
        Their ids.
    stimulus, position : ndarray, shape (n_tokens,)
        Number of every token's stimulus, and its position.

    Raises
    ------
    InvalidInput
        The trials are pooled.
    """
    missing = [name for name in ("stimulus_id", "position") if name not in table.columns]
    if missing:
        raise InvalidInput(
            f"windows: the trials have no column {listed(missing)}; make them with FeatureMasker(pool='none'), which "
            "keeps one row per token."
        )
    names = table["stimulus_id"].astype(str).to_numpy(str)
    ids, first, codes = np.unique(names, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(ids), int)
    place[order] = np.arange(len(ids))
    stimuli = ids[order].tolist()
    obs = table.iloc[first[order]].drop(columns="position")
    return obs.set_axis(stimuli, axis=0), stimuli, place[codes.ravel()], table["position"].to_numpy(float)


def _origin(align: str, anchors: Any, stimuli: list[str], stimulus: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Token position of every stimulus's event; NaN where it has none."""
    if align not in ALIGN:
        raise InvalidInput(f"windows: align is {shown(align)}; it must be one of {listed(ALIGN)}.")
    if (anchors is not None) != (align == "target"):
        told = "needs anchors, the token position of every target (see target_anchors)"
        raise InvalidInput(f"windows: align='target' {told}; 'start' and 'end' have none, found align={align!r}.")
    if align == "target":
        anchors = {str(name): place for name, place in anchors.items()}  # ids are compared as text
        return np.array([anchors.get(name, np.nan) for name in stimuli], float)
    origin = np.full(len(stimuli), np.inf if align == "start" else -np.inf)
    (np.minimum if align == "start" else np.maximum).at(origin, stimulus, position)
    return origin
