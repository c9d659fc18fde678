"""How good a dictionary is, on data it has not seen.

All figures are of raw activations x and reconstructions x̂ = decode(encode(x)), summed
over the whole data set in float64:

* explained variance EV = 1 − FVU, FVU = Σ‖x − x̂‖² / (Σ‖x‖² − N‖mean x‖²); predicting
  the mean scores exactly 0;
* L0 = mean number of features > 0 on a token (≠ 0 for dictionaries with signs);
* density of a feature = share of tokens on which it is active; dead = never active on
  these tokens, so the number of tokens belongs to the figure;
* cosine = mean cos(x, x̂); L2 ratio = E‖x̂‖ / E‖x‖; relative reconstruction bias
  E‖x̂‖² / E[x · x̂] (Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014);
* decoder cosine = mean over features of the largest cosine with another feature.

With a model and documents, see `neurollm.dictionaries.splice`, also cross-entropy with
the reconstruction in place of the activations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neurollm.dictionaries.base import Dictionary
from neurollm.dictionaries.controls import RawUnits
from neurollm.dictionaries.splice import SplicedLoss, spliced_loss
from neurollm.errors import DataMismatch, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from neurollm.activations import ActivationStore
    from neurollm.models import LanguageModel

DENSE, RARE = 0.1, 1e-5


@dataclass(frozen=True)
class DictionaryMetrics:
    """Quality of a dictionary on held-out data.

    Attributes
    ----------
    ev, fvu : float
        Explained and unexplained variance, global.
    l0 : float
    dead : float
        Share of features never active on these `n_tokens`.
    dense, rare : float
        Share of features active on more than 10 % of the tokens; on fewer than 1e-5 but at least one.
    cosine, l2_ratio, relative_reconstruction_bias : float
    decoder_cosine : float or None
    n_tokens : int
    density : ndarray of float64, shape (n_features,)
    ce, ce_sae, ce_mean, ce_zero : float or None
        Cross-entropy in nats per predicted token: of the model, with the reconstruction
        spliced in, with every activation replaced by the mean, and by zero.
    delta_ce : float or None
        ce_sae − ce.
    ce_recovered, ce_recovered_zero : float or None
        (baseline − ce_sae) / (baseline − ce) with mean and with zero ablation as the baseline.
    kl : float or None
        Mean KL divergence of the spliced from the clean prediction.
    n_predicted : int
        Predicted tokens behind the cross-entropies.
    ce_note : str
        Why there is no cross-entropy, or which positions were spliced.
    """

    ev: float
    fvu: float
    l0: float
    dead: float
    dense: float
    rare: float
    cosine: float
    l2_ratio: float
    relative_reconstruction_bias: float
    decoder_cosine: float | None
    n_tokens: int
    density: np.ndarray = dataclasses.field(repr=False, compare=False)
    ce: float | None = None
    ce_sae: float | None = None
    ce_mean: float | None = None
    ce_zero: float | None = None
    delta_ce: float | None = None
    ce_recovered: float | None = None
    ce_recovered_zero: float | None = None
    kl: float | None = None
    n_predicted: int = 0
    ce_note: str = "no model and documents were given"

    @property
    def ce_ablated(self) -> float | None:
        """Cross-entropy under mean ablation, the baseline of `ce_recovered`."""
        return self.ce_mean

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the density of every feature."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "density"]
        return {name: getattr(self, name) for name in names}


def evaluate_dictionary(
    dictionary: Dictionary,
    data: ActivationStore | torch.Tensor | np.ndarray,
    model: LanguageModel | None = None,
    documents: Sequence[str] | Any = None,
    *,
    batch_size: int = 4096,
    verbose: int = 0,
) -> DictionaryMetrics:
    """Measure a dictionary on held-out data.

    Parameters
    ----------
    dictionary : Dictionary
    data : ActivationStore, Tensor or ndarray (n, d_in)
        Held-out activations of the dictionary's site, special tokens left out.
    model : LanguageModel, optional
    documents : Corpus, or sequence of str or of token id arrays, optional
        Held-out texts for the cross-entropies; needs `model`.
    batch_size : int, default=4096
    verbose : int, default=0

    Returns
    -------
    DictionaryMetrics

    Raises
    ------
    DataMismatch
        If data or model do not belong to the dictionary.
    """
    if (model is None) != (documents is None):
        raise InvalidInput("evaluate_dictionary: model and documents are given together or not at all")
    if model is not None:
        dictionary.check(model)
    sums = _Sums(dictionary)
    for batch in _rows(dictionary, data, batch_size):
        sums.add(batch)
    metrics = sums.metrics()
    if model is None:
        return metrics
    if not model.is_causal:
        note = f"model {model.name!r} is an encoder: it predicts no next token"
        return dataclasses.replace(metrics, ce_note=note)
    mean = torch.from_numpy(sums.total / sums.n).float()
    loss = spliced_loss(model, dictionary, documents, mean, verbose=verbose)
    return dataclasses.replace(metrics, **_ce_figures(loss))


def _rows(
    dictionary: Dictionary, data: ActivationStore | torch.Tensor | np.ndarray, batch_size: int
) -> Iterator[torch.Tensor]:
    if isinstance(data, torch.Tensor | np.ndarray):
        rows = torch.as_tensor(data)
        yield from (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
        return
    if data.site != dictionary.site:
        raise DataMismatch(f"{dictionary} was made at {dictionary.site}; the activation store holds {data.site}")
    known = dictionary.model_fingerprint and data.model_fingerprint
    if known and dictionary.model_fingerprint != data.model_fingerprint:
        raise DataMismatch(
            f"{dictionary} was trained on a model with fingerprint {dictionary.model_fingerprint[:12]}; the "
            f"activation store is of one with {data.model_fingerprint[:12]}"
        )
    for start in range(0, data.n_rows, batch_size):
        yield data.rows(start, min(start + batch_size, data.n_rows))


class _Sums:
    """Streaming float64 sums from which every reconstruction metric follows."""

    def __init__(self, dictionary: Dictionary) -> None:
        self.dictionary = dictionary
        self.n = 0
        self.total = np.zeros(dictionary.d_in)
        self.fires = np.zeros(dictionary.n_features, dtype=np.int64)
        # ‖x‖², ‖x̂‖², x·x̂, ‖x − x̂‖², ‖x‖, ‖x̂‖, cos
        self.scalars = np.zeros(7)

    def add(self, batch: torch.Tensor) -> None:
        """Add the rows of one batch."""
        features = self.dictionary.encode_sparse(batch)
        x = batch.cpu().double().numpy()
        y = self.dictionary.decode(features).astype(np.float64)
        xx, yy, xy = (np.einsum("nd,nd->n", a, b) for a, b in ((x, x), (y, y), (x, y)))
        x_norm, y_norm = np.sqrt(xx), np.sqrt(yy)
        cosine = xy / np.maximum(x_norm * y_norm, np.finfo(float).tiny)
        error = np.square(x - y).sum()
        self.scalars += [xx.sum(), yy.sum(), xy.sum(), error, x_norm.sum(), y_norm.sum(), cosine.sum()]
        self.total += x.sum(0)
        self.fires += np.bincount(features.indices, minlength=self.dictionary.n_features)
        self.n += len(x)

    def metrics(self) -> DictionaryMetrics:
        """The figures without cross-entropies."""
        if self.n == 0:
            raise InvalidInput("evaluate_dictionary: there are no activations")
        xx, yy, xy, error, x_norm, y_norm, cosine = self.scalars
        variance = xx - np.square(self.total).sum() / self.n
        fvu = float(error / variance) if variance > 0 else float("nan")
        density = self.fires / self.n
        return DictionaryMetrics(
            ev=1 - fvu,
            fvu=fvu,
            l0=float(self.fires.sum() / self.n),
            dead=float(np.mean(self.fires == 0)),
            dense=float(np.mean(density > DENSE)),
            rare=float(np.mean((density < RARE) & (self.fires > 0))),
            cosine=float(cosine / self.n),
            l2_ratio=_ratio(y_norm, x_norm),
            relative_reconstruction_bias=_ratio(yy, xy),
            decoder_cosine=decoder_cosine(self.dictionary),
            n_tokens=self.n,
            density=density,
        )


def decoder_cosine(dictionary: Dictionary, block: int = 1024) -> float | None:
    """Mean over features of the largest cosine with another feature's direction; None without directions.

    Independent random directions give a little less than sqrt(2 ln F / d): compare with that.
    """
    if dictionary.directions is None or dictionary.n_features < 2 or isinstance(dictionary, RawUnits):
        return None
    rows = torch.nn.functional.normalize(dictionary.directions.float(), dim=1)
    largest = []
    for start in range(0, len(rows), block):
        cosines = rows[start : start + block] @ rows.T
        own = torch.arange(len(cosines))
        cosines[own, own + start] = -1
        largest.append(cosines.max(1).values)
    return float(torch.cat(largest).double().mean())


def _ratio(a: float, b: float) -> float:
    return float(a / b) if b else float("nan")


def _ce_figures(loss: SplicedLoss) -> dict[str, Any]:
    def recovered(baseline: float) -> float:
        return _ratio(baseline - loss.spliced, baseline - loss.clean)

    return {
        "ce": loss.clean,
        "ce_sae": loss.spliced,
        "ce_mean": loss.mean,
        "ce_zero": loss.zero,
        "delta_ce": loss.spliced - loss.clean,
        "ce_recovered": recovered(loss.mean),
        "ce_recovered_zero": recovered(loss.zero),
        "kl": loss.kl,
        "n_predicted": loss.n_predicted,
        "ce_note": "special tokens are untouched in all runs; ce_recovered is against mean ablation",
    }
