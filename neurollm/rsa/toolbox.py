"""RDMs to and from rsatoolbox, and files of them that keep every descriptor.

rsatoolbox's ``RDMs`` (https://rsatoolbox.readthedocs.io) is the container of RDMs of regions, layers and models here,
so that all its functions and plots can be used. Its HDF5 files cannot hold text beyond ASCII, missing values or the
strings of pandas 3; `save_rdms` writes an ``.npz`` archive without pickled objects instead: the dissimilarities and
numeric descriptors as arrays, all other descriptors as JSON.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import atomic_path
from neurollm.validation import shown

if TYPE_CHECKING:
    import pandas as pd
    from rsatoolbox.rdm import RDMs

FORMAT = "neurollm.RDMs"
VERSION = 1
_GROUPS = ("descriptors", "rdm_descriptors", "pattern_descriptors")


def rsatoolbox_rdms() -> type:
    """The class ``rsatoolbox.rdm.RDMs``, or how to get it."""
    try:
        from rsatoolbox.rdm import RDMs
    except ImportError:
        raise InvalidInput("RDMs of regions need rsatoolbox; install it with 'pip install rsatoolbox'.") from None
    return RDMs


def plain_values(values: Any) -> list[Any] | np.ndarray:
    """Values of a descriptor without pandas: an array of one kind of number or of text, else a list; missing is None.

    Examples
    --------
    >>> import pandas as pd
    >>> plain_values(pd.Series(["höhe", None])), plain_values(pd.Series([1, 2])).dtype.kind
    (['höhe', None], 'i')
    """
    import pandas as pd

    if isinstance(values, pd.Series | pd.Index) or type(values).__module__.startswith("pandas"):
        values = [None if pd.api.types.is_scalar(value) and pd.isna(value) else value for value in list(values)]
    elif isinstance(values, np.ndarray) and values.dtype.kind in "biufc":
        return values.copy()
    values = [_plain(value) for value in values]
    for kind in (bool, int, float, str):
        if values and all(type(value) is kind for value in values):
            # Numpy strips NUL characters from the end of its texts, and has no integer beyond 64 bits.
            if kind is str and any(value.endswith("\0") for value in values):
                return values
            if kind is int and any(not -(2**63) <= value < 2**63 for value in values):
                return values
            return np.array(values)
    return values


def as_rdms(
    dissimilarities: np.ndarray,
    *,
    measure: str | None,
    descriptors: Mapping[str, Any],
    rdm: Mapping[str, Any],
    pattern: Mapping[str, Any],
) -> RDMs:
    """Build an ``RDMs`` from upper triangles or matrices; numpy counts rows itself, so ``index`` is not given."""
    return rsatoolbox_rdms()(
        np.asarray(dissimilarities, float),
        dissimilarity_measure=measure,
        descriptors=dict(descriptors),
        rdm_descriptors={name: plain_values(values) for name, values in rdm.items() if name != "index"},
        pattern_descriptors={name: plain_values(values) for name, values in pattern.items() if name != "index"},
    )


def to_rsatoolbox(
    rdms: Mapping[str, np.ndarray] | Sequence[Any],
    obs: pd.DataFrame | None = None,
    *,
    measure: str = "model",
    descriptors: Mapping[str, Any] | None = None,
) -> RDMs:
    """Turn model RDMs into an rsatoolbox object.

    Parameters
    ----------
    rdms : mapping of name to ndarray of shape (n, n), or sequence of ModelRDM
        Symmetric with a zero diagonal; NaN: the model says nothing about the pair.
    obs : DataFrame with n rows, optional
        Facts about the conditions (stimulus ids, prompts), kept as pattern descriptors.
    measure : str, default="model"
        What the numbers are.
    descriptors : mapping, optional
        Facts about all RDMs.

    Returns
    -------
    rsatoolbox.rdm.RDMs
        With the rdm descriptor ``name``.

    Raises
    ------
    InvalidInput
        A matrix is not an RDM, or rsatoolbox is not installed.
    DataMismatch
        The matrices or `obs` differ in size.

    Examples
    --------
    >>> import pandas as pd
    >>> D = np.array([[0.0, 1, 2], [1, 0, 3], [2, 3, 0]])
    >>> rdms = to_rsatoolbox({"size": D}, pd.DataFrame({"prompt": ["wie hoch?", "größer", "最大"]}))
    >>> rdms.dissimilarities.tolist(), rdms.pattern_descriptors["prompt"].tolist()[2]
    ([[1.0, 2.0, 3.0]], '最大')
    """
    named = named_matrices(rdms)
    n = len(next(iter(named.values())))
    if obs is not None and len(obs) != n:
        raise DataMismatch(f"obs has {len(obs)} rows but the RDMs have {n} conditions.")
    upper = np.triu_indices(n, 1)
    return as_rdms(
        np.array([matrix[upper] for matrix in named.values()]),
        measure=measure,
        descriptors=descriptors or {},
        rdm={"name": list(named)},
        pattern={} if obs is None else {str(name): obs[name] for name in obs.columns},
    )


def from_rsatoolbox(rdms: RDMs, name: str = "name") -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Take an rsatoolbox object apart.

    Parameters
    ----------
    rdms : rsatoolbox.rdm.RDMs
    name : str, default="name"
        The rdm descriptor that names the RDMs; without it they are called by their number.

    Returns
    -------
    matrices : dict of name to ndarray, shape (n, n)
    obs : DataFrame, n rows
        The pattern descriptors.

    Raises
    ------
    InvalidInput
        `rdms` is something else, or two RDMs have one name.

    Examples
    --------
    >>> D = np.array([[0.0, 1, 2], [1, 0, 3], [2, 3, 0]])
    >>> matrices, obs = from_rsatoolbox(to_rsatoolbox({"size": D}))
    >>> bool((matrices["size"] == D).all()), len(obs)
    (True, 3)
    """
    import pandas as pd

    check_rdms(rdms, "rdms")
    names = rdm_names(rdms, name)
    matrices = dict(zip(names, square(rdms.dissimilarities), strict=True))
    obs = pd.DataFrame(index=range(rdms.n_cond))
    for column, values in rdms.pattern_descriptors.items():
        numbers = isinstance(values, np.ndarray) and values.dtype.kind in "biuf"
        obs[column] = values if numbers else pd.Series(objects(values), dtype=object)
    return matrices, obs


def square(vectors: np.ndarray) -> np.ndarray:
    """Upper triangles (k, m) as symmetric matrices (k, n, n) with a zero diagonal."""
    vectors = np.atleast_2d(vectors)
    n = round((1 + np.sqrt(1 + 8 * vectors.shape[1])) / 2)
    out = np.zeros((len(vectors), n, n))
    first, second = np.triu_indices(n, 1)
    out[:, first, second] = out[:, second, first] = vectors
    return out


def objects(values: Sequence[Any]) -> np.ndarray:
    """A one-dimensional array of objects, also of lists of one length."""
    out = np.empty(len(values), object)
    for place, value in enumerate(values):
        out[place] = value
    return out


def check_rdms(rdms: Any, where: str) -> None:
    """Refuse what is not an ``RDMs``."""
    if not isinstance(rdms, rsatoolbox_rdms()):
        raise InvalidInput(
            f"{where} is of type {type(rdms).__name__}; expected rsatoolbox.rdm.RDMs, as region_rdms and to_rsatoolbox "
            "return them."
        )


def rdm_names(rdms: RDMs, name: str = "name") -> list[str]:
    """Names of the RDMs; numbers where there is no such descriptor."""
    names = [str(value) for value in rdms.rdm_descriptors.get(name, range(rdms.n_rdm))]
    twice = next((value for value in names if names.count(value) > 1), None)
    if twice is not None:
        raise InvalidInput(f"two RDMs have the name {shown(twice)}; names must differ.")
    return names


def named_matrices(rdms: Any) -> dict[str, np.ndarray]:
    """Model RDMs by name, checked: of one size, symmetric, zero on the diagonal."""
    if isinstance(rdms, Mapping):
        named = {str(name): np.asarray(matrix, float) for name, matrix in rdms.items()}
    elif isinstance(rdms, Sequence) and all(hasattr(rdm, "name") and hasattr(rdm, "matrix") for rdm in rdms):
        named = {str(rdm.name): np.asarray(rdm.matrix, float) for rdm in rdms}
        if len(named) < len(rdms):
            raise InvalidInput("two model RDMs have the same name; names must differ.")
    else:
        raise InvalidInput("model RDMs must be a mapping of name to matrix, or a list of ModelRDM.")
    if not named:
        raise InvalidInput("there are no model RDMs.")
    for name, matrix in named.items():
        _check_matrix(name, matrix)
    sizes = {name: len(matrix) for name, matrix in named.items()}
    if len(set(sizes.values())) > 1:
        raise DataMismatch(f"the model RDMs differ in their number of conditions: {sizes}.")
    return named


def _check_matrix(name: str, matrix: np.ndarray) -> None:
    where = f"model RDM {shown(name)}"
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 3:
        raise InvalidInput(f"{where} has the shape {matrix.shape}; expected n × n with at least 3 conditions.")
    if np.isinf(matrix).any():
        raise InvalidInput(f"{where} holds infinite numbers.")
    if not np.allclose(matrix, matrix.T, rtol=1e-9, atol=1e-12, equal_nan=True):
        raise InvalidInput(f"{where} is not symmetric.")
    if (np.diag(matrix) != 0).any():
        raise InvalidInput(f"{where} is not zero on its diagonal.")


def save_rdms(rdms: RDMs, path: str | os.PathLike) -> Path:
    """Write RDMs with all descriptors, atomically.

    Parameters
    ----------
    rdms : rsatoolbox.rdm.RDMs
    path : path-like
        Usually ``….npz``.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    InvalidInput
        A descriptor holds objects that are not numbers, text, None or lists of these; or the disk cannot be written.
    """
    check_rdms(rdms, "rdms")
    arrays: dict[str, np.ndarray] = {"dissimilarities": np.asarray(rdms.dissimilarities, float)}
    header: dict[str, Any] = {"format": FORMAT, "version": VERSION, "measure": rdms.dissimilarity_measure}
    for group in _GROUPS:
        header[group] = []
        for name, values in getattr(rdms, group).items():
            entry: dict[str, Any] = {"name": str(name)}
            if isinstance(values, np.ndarray) and values.dtype.kind in "biufc":
                entry |= {"kind": "array", "key": f"array_{len(arrays)}"}
                arrays[entry["key"]] = values
            elif isinstance(values, np.ndarray) and values.ndim == 1:
                kind = "texts" if values.dtype.kind == "U" else "objects"
                entry |= {"kind": kind, "values": [_jsonable(value, name) for value in values.tolist()]}
            else:
                values = list(values) if type(values).__module__.startswith("pandas") else values
                entry |= {"kind": "plain", "values": _jsonable(values, name)}
            header[group].append(entry)
    arrays["header"] = np.frombuffer(json.dumps(header).encode("ascii"), np.uint8)
    with atomic_path(path) as partial, open(partial, "wb") as handle:
        np.savez_compressed(handle, **arrays)
    return Path(path)


def load_rdms(path: str | os.PathLike) -> RDMs:
    """Read RDMs written by `save_rdms`.

    Returns
    -------
    rsatoolbox.rdm.RDMs

    Raises
    ------
    InvalidInput
        There is no such file, or it holds no RDMs.
    DataMismatch
        It is damaged, or was written by another version.
    """
    RDMs = rsatoolbox_rdms()
    try:
        with open(path, "rb") as handle:
            if handle.read(2) != b"PK":
                raise InvalidInput(f"{path}: this is no file of RDMs.")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise InvalidInput(f"{path}: there is no such file.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.error, NotImplementedError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise DataMismatch(f"{path}: the file is damaged and cannot be read.") from None
    try:
        header = json.loads(arrays["header"].tobytes())
        found = header["format"], header["version"]
    except (KeyError, ValueError, TypeError):
        raise InvalidInput(f"{path}: this is no file of RDMs.") from None
    if found != (FORMAT, VERSION):
        raise DataMismatch(f"{path}: written as {shown(found)}; expected {(FORMAT, VERSION)}.")
    try:
        groups = {group: {entry["name"]: _read(entry, arrays) for entry in header[group]} for group in _GROUPS}
        return RDMs(arrays["dissimilarities"], dissimilarity_measure=header["measure"], **groups)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise DataMismatch(f"{path}: the file is damaged: its descriptors do not fit its dissimilarities.") from None


def _read(entry: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
    if entry["kind"] == "array":
        return arrays[entry["key"]]
    values = entry["values"]
    if entry["kind"] == "texts":
        return np.array(values, dtype=str)
    if entry["kind"] == "objects":
        return objects(values)
    return values


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _jsonable(value: Any, name: str) -> Any:
    """Numbers, text, None and lists of them; NaN and infinities stay, as Python's JSON writes and reads them."""
    value = _plain(value)
    if type(value).__module__.startswith("pandas"):
        import pandas as pd

        value = None if pd.api.types.is_scalar(value) and pd.isna(value) else value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | set | frozenset | range):
        return [_jsonable(part, name) for part in value]
    if isinstance(value, np.ndarray):
        return [_jsonable(part, name) for part in value.tolist()]
    raise InvalidInput(
        f"descriptor {shown(name)} holds {shown(value)}, a {type(value).__name__}; files keep numbers, text, None and "
        "lists of them."
    )
