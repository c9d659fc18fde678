"""FeatureMasker: stimuli × model × dictionary → trials."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from neurollm._version import __version__
from neurollm.errors import InvalidInput
from neurollm.files import atomic_path
from neurollm.masking.windows import POOLS, Window, pool_rows
from neurollm.models import LanguageModel, Site, TokenizedText, iter_activations, probe_site, tokenize
from neurollm.progress import Progress

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from neurollm.dictionaries import Dictionary
    from neurollm.stimuli import StimulusSet


class FeatureMasker:
    """Run stimuli through a model and return the features of each trial.

    Special tokens (start, end, separator, padding) are never part of a window unless
    it is ``"all"``. Nothing is truncated. Trials whose window catches no token are
    dropped and listed.

    Parameters
    ----------
    model : LanguageModel
    dictionary : Dictionary
        Turns activations into features; it also says at which site they are taken.
    tokens : str, default="content"
        The token window, see `Window`.
    pool : {"mean", "max", "sum", "last", "none"}, default="mean"
        How the tokens of a window become one trial; ``"none"`` keeps one row per token.
    tokens_per_batch : int, optional
        Padded tokens per forward pass; default: the model's own ``tokens_per_batch``. The
        stimuli of an item always share a pass; beyond rounding, results do not depend on it.
    verbose : int, default=1

    Examples
    --------
    >>> from neurollm import StimulusSet, load_dictionary, load_model
    >>> table = {"win": ["She won."], "loss": ["She lost."]}
    >>> stimuli = StimulusSet.from_conditions(table)
    >>> masker = FeatureMasker(load_model("demo"), load_dictionary("demo"), verbose=0)
    >>> masker.fit_transform(stimuli).shape
    (2, 4096)
    """

    def __init__(
        self,
        model: LanguageModel,
        dictionary: Dictionary,
        *,
        tokens: str = "content",
        pool: str = "mean",
        tokens_per_batch: int | None = None,
        verbose: int = 1,
    ) -> None:
        self.model = model
        self.dictionary = dictionary
        self.tokens = tokens
        self.pool = pool
        self.tokens_per_batch = tokens_per_batch
        self.verbose = verbose

    def fit(self, stimuli: StimulusSet | None = None) -> FeatureMasker:
        """Check that model, site and dictionary belong together.

        Raises
        ------
        InvalidInput
            If window or pooling are unknown, or the model has no such site.
        DataMismatch
            If the dictionary was made for another model or site, or the site cannot be read exactly.
        """
        self.window_ = Window(self.tokens)
        if self.pool not in POOLS:
            raise InvalidInput(f"pool: {self.pool!r} is unknown; use one of {', '.join(POOLS)}")
        self.dictionary.check(self.model)
        probe_site(self.model, self.dictionary.site)
        self.site_: Site = self.dictionary.site
        return self

    def tokenize(self, stimuli: StimulusSet) -> list[TokenizedText]:
        """Tokens of the stimuli, as `transform` runs them.

        Raises
        ------
        InvalidInput
            If a text is longer than the model's context.
        """
        tokenized = tokenize(self.model, stimuli.table["text"].tolist())
        too_long = [row for row, tokens in enumerate(tokenized) if len(tokens) > self.model.context]
        if too_long:
            row = too_long[0]
            raise InvalidInput(
                f"{stimuli.name}: stimulus {stimuli.table['stimulus_id'].iloc[row]!r} (row {row + 1}) has "
                f"{len(tokenized[row])} tokens, but model {self.model.name!r} takes at most {self.model.context}; "
                f"shorten it ({len(too_long)} of {len(tokenized)} stimuli are too long; nothing is ever truncated)"
            )
        return tokenized

    def positions(self, stimuli: StimulusSet) -> list[np.ndarray]:
        """Positions of the window's tokens in each stimulus; call `fit` first."""
        return self._positions(stimuli, self.tokenize(stimuli))

    def _positions(self, stimuli: StimulusSet, tokenized: list[TokenizedText]) -> list[np.ndarray]:
        targets = stimuli.table.get("target", [""] * len(tokenized))
        return [
            self.window_.positions(tokens, _span(target)) for tokens, target in zip(tokenized, targets, strict=True)
        ]

    def transform(self, stimuli: StimulusSet) -> AnnData:
        """Trials of the stimuli.

        Parameters
        ----------
        stimuli : StimulusSet

        Returns
        -------
        AnnData
            `X`: CSR of float32, trials × features. `obs`: the stimulus table, indexed by
            stimulus_id, with `n_tokens` (tokens in the window). `var`: `feature` (its
            number in the dictionary) and `n_active` (trials in which it is above zero).
            ``uns["neurollm"]``: provenance as JSON, see `provenance`.

        Raises
        ------
        InvalidInput
            If a text is longer than the model's context, or no trial is left.
        """
        table = stimuli.table.reset_index(drop=True)
        tokenized = self.tokenize(stimuli)
        positions = self._positions(stimuli, tokenized)
        codes, owners = self._encode(tokenized, positions, table["item"].tolist())
        return self._assemble(stimuli, table, positions, codes, owners)

    def fit_transform(self, stimuli: StimulusSet) -> AnnData:
        """`fit`, then `transform`."""
        return self.fit(stimuli).transform(stimuli)

    def _encode(
        self, tokenized: list[TokenizedText], positions: list[np.ndarray], items: list[str]
    ) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Features of every token in a window, and the stimulus each token belongs to (increasing)."""
        parts, owners = [], []
        sequences = [tokens.ids for tokens in tokenized]
        with Progress("trials", len(sequences), "stimuli", self.verbose) as progress:
            for rows, batch_owners in self._batches(sequences, positions, items):
                parts.append(self.dictionary.encode_sparse(rows))
                owners.append(batch_owners)
                progress.advance(len(np.unique(batch_owners)))
        codes = sparse.vstack(parts, format="csr")
        order = np.argsort(np.concatenate(owners), kind="stable")
        return codes[order], np.concatenate(owners)[order]

    def _batches(
        self, sequences: list[np.ndarray], positions: list[np.ndarray], items: list[str]
    ) -> Iterator[tuple[Any, np.ndarray]]:
        # An item's stimuli share a batch: in batches sorted by length alone, a condition with longer
        # texts would be computed in other shapes, and the rounding would become a difference.
        for indices, hidden, _ in iter_activations(
            self.model, sequences, self.site_, tokens_per_batch=self.tokens_per_batch, groups=items
        ):
            sizes = [len(positions[index]) for index in indices]
            rows = np.repeat(np.arange(len(indices)), sizes)
            yield hidden[rows, np.concatenate([positions[index] for index in indices])], np.repeat(indices, sizes)

    def _assemble(
        self,
        stimuli: StimulusSet,
        table: Any,
        positions: list[np.ndarray],
        codes: sparse.csr_matrix,
        owners: np.ndarray,
    ) -> AnnData:
        import pandas as pd
        from anndata import AnnData

        n_tokens = np.array([len(where) for where in positions])
        kept = np.flatnonzero(n_tokens)
        if len(kept) == 0:
            raise InvalidInput(f"token window {self.tokens!r} catches no token in any of the {len(table)} stimuli")
        obs = trial_table(stimuli).assign(n_tokens=n_tokens)
        if self.pool == "none":
            obs = obs.iloc[owners].assign(position=np.concatenate(positions))
            obs.index = obs["stimulus_id"] + ":" + obs["position"].astype(str)
            rows = codes
        else:
            obs = obs.iloc[kept]
            rows = pool_rows(codes, owners, len(table), self.pool)[kept]
        n_active = np.asarray((rows > 0).sum(axis=0)).ravel()
        features = np.arange(codes.shape[1])
        var = pd.DataFrame({"feature": features, "n_active": n_active}, index=features.astype(str))
        obs.index.name = None
        trials = AnnData(X=rows.astype(np.float32), obs=obs, var=var)
        dropped = [
            {"stimulus_id": str(table["stimulus_id"][row]), "reason": f"no token in the window {self.tokens!r}"}
            for row in np.flatnonzero(n_tokens == 0)
        ]
        trials.uns["neurollm"] = json.dumps(self._provenance(stimuli, dropped), sort_keys=True)
        return trials

    def _provenance(self, stimuli: StimulusSet, dropped: list[dict[str, str]]) -> dict[str, Any]:
        return {
            "neurollm": __version__,
            "model": self.model.describe(),
            "site": self.site_.to_dict(),
            "dictionary": self.dictionary.describe(),
            "tokens": self.tokens,
            "pool": self.pool,
            "stimuli": {"name": stimuli.name, "sha256": stimuli.sha256, "n": len(stimuli)},
            "dropped": dropped,
        }


def trial_table(stimuli: StimulusSet) -> pd.DataFrame:
    """The stimulus table indexed by stimulus_id, the levels of its factors in their declared order."""
    import pandas as pd

    table = stimuli.table
    for factor in stimuli.factors:
        table[factor] = pd.Categorical(table[factor], categories=stimuli.levels(factor))
    return table.set_axis(table["stimulus_id"].astype(str).rename(None), axis=0)


def save_trials(trials: AnnData, path: str | os.PathLike) -> None:
    """Write trials as ``.h5ad``, completely or not at all.

    The file is laid out in memory first: HDF5 cannot give up a file on a full disk without damage.
    """
    import h5py
    from anndata.io import write_elem

    with h5py.File("trials", "w", driver="core", backing_store=False) as image:
        write_elem(image, "/", trials)
        image.flush()
        content = image.id.get_file_image()
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def provenance(trials: AnnData) -> dict[str, Any]:
    """How trials were made: model, site, dictionary, window, pooling, stimuli and dropped trials."""
    return json.loads(trials.uns["neurollm"])


def _span(target: str) -> tuple[int, int] | None:
    """The character span of a validated ``"start:end"``, or None when the stimulus has no target."""
    start, separator, end = str(target).partition(":")
    return (int(start), int(end)) if separator else None
