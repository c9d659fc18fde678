"""Control dictionaries: what an analysis finds without any learned feature.

They share the interface of trained dictionaries, so that any analysis can be repeated
on them. `controls_of` makes those of one dictionary. A further control is an SAE trained
on the activations of texts whose words are shuffled, see
`neurollm.activations.shuffling.shuffled_words`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from neurollm.dictionaries.base import Dictionary
from neurollm.dictionaries.components import (
    ICA_ROWS,
    ICADictionary,
    PCADictionary,
    chosen_rows,
    moments,
    rank_of,
    sample_rows,
)
from neurollm.dictionaries.control_files import Control
from neurollm.dictionaries.kernels import topk_of_relu
from neurollm.dictionaries.nmf import NMFDictionary
from neurollm.dictionaries.rows import Rows, check_rows
from neurollm.dictionaries.sae import SAE
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import Site
from neurollm.random import stream

logger = logging.getLogger("neurollm")

KINDS = ("raw_units", "random_directions", "random_sae", "pca", "ica", "nmf")
# Rows on which the L0 of a random SAE is matched to that of the trained one.
ROWS_FOR_L0 = 4096


class RawUnits(Control):
    """The units of the site themselves: encode and decode are the identity.

    Parameters
    ----------
    site : Site
    d_in : int
    model_name, model_fingerprint : str
    """

    architecture = "raw_units"

    def __init__(self, site: Site, d_in: int, *, model_name: str = "", model_fingerprint: str = "") -> None:
        super().__init__(site, d_in, d_in, model_name=model_name, model_fingerprint=model_fingerprint)

    @property
    def directions(self) -> torch.Tensor:
        """The unit vectors."""
        return torch.eye(self.d_in)

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    def _decode(self, features: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
        return features.clone()

    def _identity(self) -> list[bytes]:
        return []

    def _stored(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        return {}, {}

    @classmethod
    def from_parameters(
        cls,
        site: Site,
        d_in: int,
        parameters: dict[str, Any],
        tensors: dict[str, torch.Tensor],
        **model: str,
    ) -> RawUnits:
        """Inverse of `save`."""
        return cls(site, d_in, **model)


class RandomDirections(Control):
    """Random directions read like features: f_i = ReLU(u_i · (x − mean)), optionally only the k largest.

    The u_i are independent and uniform on the sphere. Decoding scales the weighted
    sum v = Σ f_i u_i so that its projections fit the active features in the sense
    of least squares: x̂ = mean + c v with c = ‖v‖² / Σ_{active} (u_i · v)².

    Parameters
    ----------
    site : Site
    d_in, n_features : int
    random_state : int, default=0
    mean : Tensor, shape (d_in,), optional
        Centre of the activations. Without it most features tell on which side of the
        origin the mean lies.
    k : int, optional
        As many features per token as the SAE it is compared with.
    model_name, model_fingerprint : str

    Examples
    --------
    >>> control = RandomDirections(Site(3), 8, 32, k=4)
    >>> int((control.encode(torch.randn(5, 8)) > 0).sum(1).max()) <= 4
    True
    """

    architecture = "random_directions"

    def __init__(
        self,
        site: Site,
        d_in: int,
        n_features: int,
        random_state: int = 0,
        *,
        mean: torch.Tensor | None = None,
        k: int | None = None,
        model_name: str = "",
        model_fingerprint: str = "",
    ) -> None:
        super().__init__(site, d_in, n_features, model_name=model_name, model_fingerprint=model_fingerprint)
        if k is not None and not 1 <= k <= n_features:
            raise InvalidInput(f"k: expected 1 to {n_features:,} (the number of features), got {k}")
        self.random_state, self.k = int(random_state), k
        self.mean = torch.zeros(d_in) if mean is None else torch.as_tensor(mean, dtype=torch.float32).cpu()
        if self.mean.shape != (d_in,):
            raise InvalidInput(f"mean: expected shape ({d_in},), got {tuple(self.mean.shape)}")
        self._directions = torch.from_numpy(unit_rows(random_state, "random_directions", n_features, d_in))

    @classmethod
    def matching(
        cls,
        dictionary: Dictionary,
        random_state: int = 0,
        k: int | None = None,
        mean: torch.Tensor | None = None,
    ) -> RandomDirections:
        """The control of a dictionary: same site, number of features and centre; k too, unless another is given.

        `mean`, that of the activations, is the centre where the dictionary has none of its own: where it
        normalises every token by itself, or its encoder does not subtract b_dec.
        """
        centre = dictionary.centre
        if mean is not None and not _has_centre(dictionary):
            centre = mean
        return cls(
            dictionary.site,
            dictionary.d_in,
            dictionary.n_features,
            random_state,
            mean=centre,
            k=k or getattr(dictionary, "k", None),
            model_name=dictionary.model_name,
            model_fingerprint=dictionary.model_fingerprint,
        )

    @property
    def directions(self) -> torch.Tensor:
        """The random unit vectors, shape (n_features, d_in)."""
        return self._directions

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        pre = (x - self.mean) @ self._directions.T
        if self.k is None:
            return pre.relu()
        values, indices = topk_of_relu(pre, self.k)
        return torch.zeros_like(pre).scatter_(1, indices, values)

    def _decode(self, features: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
        v = features @ self._directions
        projections = (v @ self._directions.T) * (features != 0)
        factor = v.square().sum(1) / projections.square().sum(1).clamp_min(torch.finfo(v.dtype).tiny)
        return self.mean + factor[:, None] * v

    def _identity(self) -> list[bytes]:
        return [f"k={self.k}\n".encode(), self._directions.numpy().tobytes(), self.mean.numpy().tobytes()]

    def describe(self) -> dict[str, Any]:
        """What is written into results."""
        return {**super().describe(), "k": self.k, "random_state": self.random_state}

    def _stored(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        # The directions are drawn anew from `random_state`.
        parameters = {"n_features": self.n_features, "random_state": self.random_state, "k": self.k}
        return {**parameters, "mean": self.mean.tolist()}, {}

    @classmethod
    def from_parameters(
        cls,
        site: Site,
        d_in: int,
        parameters: dict[str, Any],
        tensors: dict[str, torch.Tensor],
        **model: str,
    ) -> RandomDirections:
        """Inverse of `save`."""
        return cls(site, d_in, **{**parameters, "mean": torch.tensor(parameters["mean"])}, **model)


def _has_centre(dictionary: Dictionary) -> bool:
    """Whether the encoder takes a point near the mean of the activations as the origin."""
    return dictionary.centre is not None and getattr(dictionary, "subtract_decoder_bias", True)


CONTROLS: dict[str, type[Control]] = {
    kind.architecture: kind for kind in (RawUnits, RandomDirections, PCADictionary, ICADictionary, NMFDictionary)
}


def unit_rows(random_state: int, purpose: str, n: int, d: int) -> np.ndarray:
    """`n` independent directions, uniform on the sphere in `d` dimensions, float32."""
    rows = stream(random_state, purpose).standard_normal((n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_sae(dictionary: SAE, random_state: int = 0, data: Rows | None = None) -> SAE:
    """An SAE as training would begin it: the same architecture, sizes and k, and nothing learned.

    Decoder rows are uniform on the unit sphere, the encoder is their transpose, biases
    are zero, and b_dec, the origin of the encoder, is that of the trained SAE; all in raw
    activation units. In such an SAE of ReLU, JumpReLU or gated type half of the features
    are active. With `data` it gets one common threshold t at which its mean L0 there is
    that of the trained SAE: JumpReLU and gated f = pre · [pre > t], ReLU f = ReLU(pre − t).
    TopK has its k, matching pursuit its rule to stop, and neither needs data.

    Parameters
    ----------
    dictionary : SAE
    random_state : int, default=0
        Of the decoder directions; those the trainer draws for the same number.
    data : ActivationStore, Tensor or ndarray (n, d_in), optional
        4,096 of its rows, chosen at random, are used.

    Returns
    -------
    SAE
        Of the same class: it is saved and loaded like any SAE. ``provenance["control"]``
        says what it is, ``provenance["l0_matched"]`` the L0 that was wanted, ``l0``, and the one that was
        reached. When they are more than 1 % apart, because the untrained features that are above 0 do not
        suffice, or several have the same value, a warning is logged.

    Raises
    ------
    InvalidInput
        If `dictionary` is not an SAE, or is a transcoder.
    DataMismatch
        If the activation store is of another site or model.

    Examples
    --------
    >>> from neurollm.dictionaries import load_dictionary
    >>> control = random_sae(load_dictionary("demo"))
    >>> control.architecture, control.n_features, control.k
    ('topk', 4096, 32)
    """
    if not isinstance(dictionary, SAE) or dictionary.is_transcoder:
        found = "a transcoder" if dictionary.is_transcoder else f"a {dictionary.architecture!r} dictionary"
        raise InvalidInput(f"random_sae: expected a sparse autoencoder, got {found}")
    rows = torch.from_numpy(unit_rows(random_state, "decoder_init", dictionary.n_features, dictionary.d_in))
    record: dict[str, Any] = {
        "control": "random initialisation",
        "random_state": int(random_state),
        "of": dictionary.fingerprint,
    }
    sae = _untrained(dictionary, rows, 0.0)
    calibrated = {"b_enc", "threshold", "b_gate"} & set(dictionary.tensors) and "k" not in dictionary.options
    if data is not None and calibrated:
        check_rows(dictionary, data)
        x = torch.from_numpy(sample_rows(data, ROWS_FOR_L0, random_state))
        l0 = dictionary.encode_sparse(x).nnz / len(x)
        sae = _untrained(dictionary, rows, _threshold_for(sae, x, l0))
        reached = sae.encode_sparse(x).nnz / len(x)
        record["l0_matched"] = {"rows": len(x), "l0": l0, "reached": reached}
        if abs(reached - l0) > 0.01 * l0:
            logger.warning("random_sae: an L0 of %.4g was wanted, %.4g was reached: no threshold gives it", l0, reached)
    sae.provenance = record
    return sae


def _untrained(dictionary: SAE, rows: torch.Tensor, threshold: float) -> SAE:
    """The SAE with decoder `rows` (F, d), their transpose as encoder, and one threshold for all features."""
    folded = dictionary.fold()
    zeros = torch.zeros(len(rows))
    weights = {
        "W_enc": rows.T,
        "W_dec": rows,
        "b_dec": folded.weights["b_dec"],
        "b_enc": zeros if "threshold" in dictionary.tensors else zeros - threshold,
        "threshold": zeros + threshold,
        "b_gate": zeros - threshold,
        "b_mag": zeros,
        "r_mag": zeros,
    }
    return type(dictionary)(
        dictionary.site,
        {name: weights[name].to(dictionary.device).clone() for name in dictionary.tensors},
        **folded.options,
        normalisation=folded.normalisation,
        model_name=dictionary.model_name,
        model_fingerprint=dictionary.model_fingerprint,
    )


def _threshold_for(sae: SAE, x: torch.Tensor, l0: float) -> float:
    """The threshold that leaves round(l0 · n) features of `sae`, which has none yet, on the rows `x` (n, d)."""
    wanted = min(round(l0 * len(x)), len(x) * sae.n_features - 1)
    largest = torch.zeros(wanted + 1)
    for piece in x.split(256):  # the largest of all are among the largest of the pieces
        values = sae.encode(piece).cpu().flatten()
        largest = torch.cat([largest, values.topk(min(wanted + 1, len(values))).values]).topk(wanted + 1).values
    return float(largest[-2:].mean())  # half-way to the next, so that rounding does not matter


def controls_of(
    dictionary: Dictionary,
    data: Rows,
    kinds: Sequence[str] = ("raw_units", "random_directions", "random_sae", "pca"),
    random_state: int = 0,
) -> dict[str, Dictionary]:
    """The controls of one dictionary: same site, model and interface, and the same L0 where they have one.

    The L0 is the dictionary's k, or else its mean L0 on 4,096 rows of `data`, rounded.

    Parameters
    ----------
    dictionary : Dictionary
    data : ActivationStore, Tensor or ndarray (n, d_in)
        Activations of the dictionary's site: the components are fitted to them.
    kinds : sequence of str
        ``raw_units``; ``random_directions`` (as many features, the same L0; around the mean of `data`
        where the dictionary has no centre); ``random_sae`` (see `random_sae`; SAEs only); ``pca`` and
        ``ica`` (two non-negative features for each component; as many components as the activations
        have directions with variance, or half as many as the dictionary has features, whichever is
        less; the same L0); ``nmf`` (d components or as many as the dictionary has features,
        whichever is less; its L0 is its own).
    random_state : int, default=0

    Returns
    -------
    dict of Dictionary
        By kind, in the order of `kinds`.

    Raises
    ------
    InvalidInput
        If a kind is unknown, or does not exist for this dictionary.
    DataMismatch
        If the activations are of another site, model or width.

    Examples
    --------
    >>> from neurollm.dictionaries import load_dictionary
    >>> x = np.random.default_rng(0).standard_normal((500, 256))
    >>> for name, control in controls_of(load_dictionary("demo"), x).items():
    ...     print(name, control.n_features)
    raw_units 256
    random_directions 4096
    random_sae 4096
    pca 512
    """
    for kind in kinds:
        if kind not in KINDS:
            raise InvalidInput(f"kinds: {kind!r} is unknown; use {', '.join(KINDS)}")
    check_rows(dictionary, data)
    width = data.shape[1] if isinstance(data, torch.Tensor | np.ndarray) else data.d
    if width != dictionary.d_in:
        raise DataMismatch(f"{dictionary} reads {dictionary.d_in} dimensions; these activations have {width}")
    origin = {
        "site": dictionary.site,
        "model_name": dictionary.model_name,
        "model_fingerprint": dictionary.model_fingerprint,
    }
    k = _l0(dictionary, data, random_state)
    d, n_features = dictionary.d_in, dictionary.n_features
    pairs = max(1, min(d, n_features // 2))
    if {"pca", "ica"} & set(kinds):
        pairs = min(pairs, rank_of(data, ICA_ROWS, random_state))
    mean = None
    if "random_directions" in kinds and not _has_centre(dictionary):
        mean = torch.from_numpy(moments(chosen_rows(data, None, random_state))[0])
    sparse = {"rectified": True, "k": min(k, pairs), **origin}
    make = {
        "raw_units": lambda: RawUnits(d_in=d, **origin),
        "random_directions": lambda: RandomDirections.matching(dictionary, random_state, k, mean),
        "random_sae": lambda: random_sae(dictionary, random_state, data),
        "pca": lambda: PCADictionary.fit(data, pairs, random_state, **sparse),
        "ica": lambda: ICADictionary.fit(data, pairs, random_state, **sparse),
        "nmf": lambda: NMFDictionary.fit(data, min(d, n_features), random_state, **origin),
    }
    return {kind: make[kind]() for kind in kinds}


def _l0(dictionary: Dictionary, data: Rows, random_state: int) -> int:
    k = getattr(dictionary, "k", None)
    if k is None:
        x = sample_rows(data, ROWS_FOR_L0, random_state)
        k = round(dictionary.encode_sparse(x).nnz / len(x))
    return min(max(k, 1), dictionary.n_features)
