"""Comparisons, interchange and files of RDMs, against rsatoolbox and its definitions written out."""

import json
import zipfile

import numpy as np
import pandas as pd
import pytest

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.rsa.comparators import COMPARISONS, WHITENED, compare_rdms
from neurollm.rsa.inference import compare_models
from neurollm.rsa.models import ModelRDM
from neurollm.rsa.regions import region_rdms
from neurollm.rsa.toolbox import from_rsatoolbox, load_rdms, save_rdms, to_rsatoolbox
from neurollm.stats.rdms.labels import categorical_rdm, discriminative_rdm

rsatoolbox = pytest.importorskip("rsatoolbox")
HOSTILE = ["größe <b>&amp;", "最大 😀", "a\x00", "", "line\nend", "\ud800", "'\"; --", None]


def distances(x):
    return ((x[:, None] - x) ** 2).sum(axis=-1)


def upper(matrix):
    return matrix[np.triu_indices(len(matrix), 1)]


@pytest.fixture
def points():
    """Data RDMs that follow the model 'true', and a model they do not follow."""
    rng = np.random.default_rng(0)
    true, other = rng.normal(size=(2, 12, 4))
    data = to_rsatoolbox({f"seed {k}": distances(true + 0.6 * rng.normal(size=true.shape)) for k in range(6)})
    return data, {"true": distances(true), "other": distances(other)}


# Comparisons


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_comparisons_of_region_rdms_equal_rsatoolbox(comparison):
    from rsatoolbox.rdm import compare

    X = np.random.default_rng(0).normal(size=(11, 60))
    regions = region_rdms(X, range(11), {"a": range(20), "b": slice(10, 60), "c": slice(None)})
    models = to_rsatoolbox({"x": distances(X[:, :3]), "class": categorical_rdm(np.arange(11) % 3)})
    expected = compare(regions, models, COMPARISONS[comparison])
    np.testing.assert_allclose(compare_rdms(regions, models, comparison), expected, rtol=1e-12)
    again = np.sort(np.random.default_rng(1).integers(0, 11, 11))  # repeated conditions: their pairs are missing
    first, second = (rdms.subsample_pattern("index", again) for rdms in (regions, models))
    expected = compare(first, second, COMPARISONS[comparison])
    np.testing.assert_allclose(compare_rdms(first, second, comparison), expected, rtol=1e-12)


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_identical_and_rescaled_rdms(comparison):
    rng = np.random.default_rng(3)
    d = upper(distances(rng.normal(size=(9, 5))))
    assert compare_rdms(d, d, comparison)[0, 0] == pytest.approx(1)
    assert compare_rdms(d, 7 * d, comparison)[0, 0] == pytest.approx(1)
    if comparison in ("pearson", "spearman", "rho_a", "tau_a", "whitened_pearson"):
        assert compare_rdms(d, 7 * d + 3, comparison)[0, 0] == pytest.approx(1)
    else:
        assert compare_rdms(d, 7 * d + 3, comparison)[0, 0] < 1 - 1e-5
    assert np.isnan(compare_rdms(np.vstack([d, 0 * d]), d, comparison)[1, 0])


@pytest.mark.parametrize("comparison", WHITENED)
def test_whitened_comparisons_from_100_conditions_on(comparison):
    """rsatoolbox fails as soon as a pair is missing; ours is its definition with the inverse written out."""
    from rsatoolbox.rdm import RDMs, compare
    from rsatoolbox.util.matrix import pairwise_contrast

    rng = np.random.default_rng(0)
    D = distances(rng.normal(size=(100, 8)))
    again = np.sort(rng.integers(0, 100, 100))
    sample, model = (
        RDMs(upper(m)[None]).subsample_pattern("index", again) for m in (D, D + distances(rng.random(100)[:, None]))
    )
    with pytest.raises(TypeError, match="Cannot cast ufunc"):
        compare(sample, model, COMPARISONS[comparison])
    assert 0.5 < compare_rdms(sample, model, comparison)[0, 0] <= 1
    # the definition, where pairs × pairs is small
    n, m = 12, 66
    a, b = upper(D[:n, :n]), upper(distances(rng.normal(size=(n, 2))))
    a[[0, 5, 30]] = np.nan
    there = ~np.isnan(a)
    contrasts = pairwise_contrast(np.arange(n))
    V = ((contrasts @ contrasts.T) ** 2)[np.ix_(there, there)]
    left, right = ((d[there] - d[there].mean() * (comparison == "whitened_pearson")) for d in (a, b))
    inner = [u @ np.linalg.solve(V, v) for u, v in ((left, right), (left, left), (right, right))]
    assert m == len(there)
    assert compare_rdms(a, b, comparison)[0, 0] == pytest.approx(inner[0] / np.sqrt(inner[1] * inner[2]), rel=1e-10)


@pytest.mark.parametrize("comparison", WHITENED)
def test_noise_covariance(comparison):
    """A vector of variances is the diagonal matrix of them; rsatoolbox treats the two differently."""
    from rsatoolbox.rdm import compare
    from rsatoolbox.util.matrix import pairwise_contrast

    rng = np.random.default_rng(2)
    n = 9
    a, b = (upper(distances(rng.normal(size=(n, 3))))[None] for _ in range(2))
    variances = rng.random(n) + 0.2
    ours = compare_rdms(a, b, comparison, noise_covariance=variances)[0, 0]
    method = COMPARISONS[comparison]
    assert abs(compare(a, b, method, sigma_k=variances) - compare(a, b, method, sigma_k=np.diag(variances))) > 0.005
    mixing = rng.normal(size=(n, n))
    for covariance, found in (
        (np.diag(variances), ours),
        (mixing @ mixing.T, compare_rdms(a, b, comparison, noise_covariance=mixing @ mixing.T)[0, 0]),
    ):
        contrasts = pairwise_contrast(np.arange(n))
        V = (contrasts @ covariance @ contrasts.T) ** 2
        left, right = ((d[0] - d.mean() * (comparison == "whitened_pearson")) for d in (a, b))
        inner = [u @ np.linalg.solve(V, v) for u, v in ((left, right), (left, left), (right, right))]
        assert found == pytest.approx(inner[0] / np.sqrt(inner[1] * inner[2]), rel=1e-8)
        assert found == pytest.approx(compare(a, b, method, sigma_k=covariance)[0, 0], abs=1e-4)
    with pytest.raises(InvalidInput, match="positive"):
        compare_rdms(a, b, comparison, noise_covariance=-variances)
    with pytest.raises(InvalidInput, match="is for the comparisons"):
        compare_rdms(a, b, "pearson", noise_covariance=variances)


def test_refused_comparisons(points):
    data, models = points
    from rsatoolbox.inference import eval_fixed
    from rsatoolbox.model import ModelFixed

    with pytest.raises(ValueError, match="Unknown RDM comparison"):  # the noise ceiling does not know it
        eval_fixed([ModelFixed("true", upper(models["true"]))], data, method="bures")
    for comparison, sentence in (("bures", "no noise ceiling"), ("corr", "called 'pearson'"), ("perason", "'pearson'")):
        with pytest.raises(InvalidInput, match=sentence):
            compare_models(data, models, comparison, "none")
        with pytest.raises(InvalidInput, match=sentence):
            compare_rdms(data, data, comparison)


# Interchange and files


def test_round_trip_through_rsatoolbox():
    D = discriminative_rdm(list("aabbcccd"), "c")
    obs = pd.DataFrame({"prompt": pd.Series(HOSTILE, dtype="str" if pd.__version__ >= "3" else object), "k": range(8)})
    rdms = to_rsatoolbox([ModelRDM("größe", D), ModelRDM("eins", 1 - np.eye(8))], obs, descriptors={"site": "layer 3"})
    matrices, back = from_rsatoolbox(rdms)
    np.testing.assert_array_equal(matrices["größe"], D)
    assert back["prompt"].tolist() == HOSTILE and back["k"].tolist() == list(range(8))
    assert to_rsatoolbox(matrices, back).subset("name", "eins").n_rdm == 1


@pytest.mark.parametrize(
    ("matrix", "sentence"),
    [
        (np.zeros((3, 4)), "expected n × n"),
        (np.arange(9.0).reshape(3, 3), "not symmetric"),
        (np.ones((3, 3)), "not zero on its diagonal"),
        (np.array([[0, np.inf, 1], [np.inf, 0, 1], [1, 1, 0]]), "infinite"),
    ],
)
def test_what_is_no_rdm(matrix, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        to_rsatoolbox({"m": matrix})


def hostile_rdms():
    D = np.random.default_rng(0).random((2, 28))
    D[1, 3] = np.nan
    return rsatoolbox.rdm.RDMs(
        D,
        dissimilarity_measure="größe",
        descriptors={"model": "gpt2 😀", "none": None, "noise": np.eye(3), "nan": float("nan")},
        rdm_descriptors={"name": ["höhe", "\ud800"]},
        pattern_descriptors={
            "prompt": HOSTILE,
            "array": np.array(["größe", "x"] * 4),
            "objects": np.array([None, 1, "最", 2.5, True, [1, 2], [], "x"], dtype=object),
            "pandas": pd.Series(["größe", "y"] * 4),
            "tokens": [list(range(k)) for k in range(8)],
            "flag": np.arange(8) > 3,
            "small": np.arange(8, dtype=np.int8),
        },
    )


def test_files_keep_every_descriptor(tmp_path):
    rdms = hostile_rdms()
    with pytest.raises(UnicodeEncodeError):
        rdms.save(str(tmp_path / "theirs.h5"))
    path = save_rdms(rdms, tmp_path / "größe 😀.npz")
    back = load_rdms(path)
    np.testing.assert_array_equal(back.dissimilarities, rdms.dissimilarities)
    assert back.dissimilarity_measure == "größe" and back.rdm_descriptors["name"] == ["höhe", "\ud800"]
    patterns = back.pattern_descriptors
    assert patterns["prompt"] == HOSTILE and patterns["tokens"] == rdms.pattern_descriptors["tokens"]
    assert patterns["array"].tolist() == ["größe", "x"] * 4 and list(patterns["pandas"]) == ["größe", "y"] * 4
    assert patterns["objects"].tolist() == rdms.pattern_descriptors["objects"].tolist()
    assert patterns["flag"].dtype == bool and patterns["small"].dtype == np.int8
    assert back.descriptors["none"] is None and np.isnan(back.descriptors["nan"])
    np.testing.assert_array_equal(back.descriptors["noise"], np.eye(3))
    again = save_rdms(back, tmp_path / "again.npz")
    assert again.read_bytes() == path.read_bytes()


def test_damaged_files_are_told(tmp_path):
    path = save_rdms(hostile_rdms(), tmp_path / "rdms.npz")
    whole = path.read_bytes()
    with pytest.raises(InvalidInput, match="no such file"):
        load_rdms(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(InvalidInput, match="no file of RDMs"):
        load_rdms(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(InvalidInput, match="no file of RDMs"):
        load_rdms(tmp_path / "other.npz")
    np.savez(tmp_path / "pickled.npz", header=np.array([{"x": 1}], dtype=object))
    with pytest.raises(DataMismatch, match="cannot be read"):
        load_rdms(tmp_path / "pickled.npz")
    for length in range(100, len(whole), 400):
        path.write_bytes(whole[:length])
        with pytest.raises(DataMismatch):
            load_rdms(path)
    path.write_bytes(whole)
    with np.load(path) as archive:
        arrays = dict(archive)
    header = json.loads(arrays["header"].tobytes())
    for change in ({"version": 2}, {"pattern_descriptors": [{"name": "x", "kind": "plain", "values": [1]}]}):
        arrays["header"] = np.frombuffer(json.dumps(header | change).encode(), np.uint8)
        np.savez(path, **arrays)
        with pytest.raises(DataMismatch):
            load_rdms(path)
    assert zipfile.is_zipfile(path)
    with pytest.raises(InvalidInput, match="'thing' holds"):
        save_rdms(to_rsatoolbox({"m": 1 - np.eye(3)}, descriptors={"thing": object()}), tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()
