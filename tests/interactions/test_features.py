"""Features of an interaction model are its own numbers; an edit changes the interactions and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from neurollm.dictionaries import RawUnits
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.interactions.features import (
    ComponentFeatures,
    InteractionFeatures,
    interaction_edit,
    load_interaction_features,
)
from neurollm.interactions.model import NFM
from neurollm.masking import FeatureMasker
from neurollm.models import Site, intervene, run_site
from neurollm.stimuli import StimulusSet


@pytest.fixture(scope="module")
def activations(demo_lm, demo_dictionary):
    ids = torch.tensor([[5, 60, 700, 81, 9, 1001, 33, 2]])
    return run_site(demo_lm, ids, None, demo_dictionary.site)[0].float()


@pytest.fixture(scope="module", params=["linear", "mlp"])
def nfm(request, demo_dictionary):
    draw = np.random.default_rng(0)
    sizes = {"V": (demo_dictionary.n_features, 5), "A": (5, 256), "W": (demo_dictionary.n_features, 256), "b": (256,)}
    sizes |= {"W1": (5, 6), "b1": (6,), "W2": (6, 256)} if request.param == "mlp" else {}
    weights = {name: torch.tensor(0.2 * draw.normal(size=size)) for name, size in sizes.items()}
    return NFM(weights, 16, demo_dictionary.fingerprint)


def test_values_are_those_of_the_model(demo_dictionary, nfm, activations):
    code = demo_dictionary.encode_sparse(activations)
    pooled = nfm.interactions(code)
    features = InteractionFeatures(demo_dictionary, nfm)
    assert torch.equal(features.encode(activations), pooled) and pooled.abs().max() > 0
    assert np.array_equal(features.encode_sparse(activations).toarray(), pooled.numpy())
    assert torch.equal(features.decode(pooled), nfm.interaction(pooled))
    parts = {name: ComponentFeatures(demo_dictionary, nfm, name) for name in ("dictionary", "linear", "interaction")}
    values = {name: part.encode(activations) for name, part in parts.items()}
    assert torch.equal(values["dictionary"], demo_dictionary.reconstruct(activations))
    assert torch.equal(values["linear"], nfm.linear(code))
    assert torch.allclose(values["linear"] + values["interaction"], nfm.predict(code), atol=1e-4)
    assert torch.equal(parts["linear"].decode(values["linear"]), values["linear"])


def test_directions_are_what_a_dimension_adds(demo_dictionary, nfm):
    features = InteractionFeatures(demo_dictionary, nfm)
    if nfm.readout == "linear":
        assert torch.allclose(features.decode(torch.eye(5)), features.directions)
    else:
        assert features.directions is None


def test_identity_and_description(demo_dictionary, nfm):
    components = [ComponentFeatures(demo_dictionary, nfm, name) for name in ("dictionary", "linear", "interaction")]
    features = [InteractionFeatures(demo_dictionary, nfm), *components]
    prints = {one.fingerprint for one in features} | {InteractionFeatures(demo_dictionary, NFM.random(nfm)).fingerprint}
    assert len(prints) == 5
    described = json.loads(json.dumps(features[3].describe()))
    assert (
        described["component"] == "interaction"
        and described["dictionary"]["fingerprint"] == demo_dictionary.fingerprint
    )
    assert described["nfm"]["fingerprint"] == nfm.fingerprint and described["site"] == demo_dictionary.site.to_dict()


@pytest.mark.parametrize("component", [None, "linear"])
def test_saved_and_loaded_they_are_the_same(demo_dictionary, nfm, activations, tmp_path, component):
    made = InteractionFeatures(demo_dictionary, nfm)
    if component is not None:
        made = ComponentFeatures(demo_dictionary, nfm, component)
    made.save(tmp_path)
    loaded = load_interaction_features(tmp_path)
    assert type(loaded) is type(made) and loaded.fingerprint == made.fingerprint
    assert torch.equal(loaded.encode(activations), made.encode(activations))
    NFM.random(nfm).save(tmp_path / "nfm")
    with pytest.raises(DataMismatch, match="another dictionary or model"):
        load_interaction_features(tmp_path)
    (tmp_path / "interaction_features.json").write_text("{}")
    with pytest.raises(DataMismatch, match="damaged"):
        load_interaction_features(tmp_path)
    with pytest.raises(InvalidInput, match="no interaction features"):
        load_interaction_features(tmp_path / "nfm")


def test_a_masker_takes_them(demo_lm, demo_dictionary, nfm):
    texts = ["The river rose over night.", "Snow fell in the hills.", "A bird sang."]
    stimuli = StimulusSet.from_conditions({"a": texts[:2], "b": texts[2:]})
    for features in (InteractionFeatures(demo_dictionary, nfm), ComponentFeatures(demo_dictionary, nfm, "interaction")):
        masker = FeatureMasker(demo_lm, features, verbose=0)
        trials = masker.fit_transform(stimuli)
        ids = torch.from_numpy(np.asarray(masker.tokenize(stimuli)[2].ids))[None]
        values = features.encode(run_site(demo_lm, ids, None, features.site)[0].float())
        expected = values[masker.positions(stimuli)[2]].mean(0)
        assert np.allclose(trials.X[2].toarray()[0], expected.numpy(), atol=1e-3)


def test_a_dictionary_that_the_model_does_not_know_is_refused(demo_dictionary, nfm):
    with pytest.raises(DataMismatch, match="another dictionary"):
        InteractionFeatures(RawUnits(Site(3), 256), nfm)
    with pytest.raises(InvalidInput, match="expected one of"):
        ComponentFeatures(demo_dictionary, nfm, "mlp")


def test_an_edit_multiplies_dimensions_and_keeps_the_error(demo_dictionary, nfm, activations):
    hidden = activations[None]
    pooled = nfm.interactions(demo_dictionary.encode_sparse(activations))
    assert torch.equal(interaction_edit(demo_dictionary, nfm, scale=1)(hidden), hidden)
    removed = interaction_edit(demo_dictionary, nfm)(hidden)
    assert torch.allclose(hidden - removed, nfm.interaction(pooled)[None], atol=1e-4)
    changed = pooled * torch.tensor([1, 3.0, 1, -1, 1])
    expected = activations + nfm.interaction(changed) - nfm.interaction(pooled)
    assert torch.allclose(interaction_edit(demo_dictionary, nfm, [1, 3], [3.0, -1.0])(hidden)[0], expected, atol=1e-4)
    assert interaction_edit(demo_dictionary, nfm)(hidden.bfloat16()).dtype == torch.bfloat16


def test_an_edit_in_the_model_changes_its_logits(demo_lm, demo_dictionary, nfm):
    ids = torch.tensor([[5, 60, 700, 81, 9]])
    with torch.no_grad():
        clean = demo_lm.model(ids).logits
        logits = {}
        for scale in (1.0, 0.0):
            edit = interaction_edit(demo_dictionary, nfm, scale=scale)
            with intervene(demo_lm, demo_dictionary.site, edit) as counter:
                logits[scale] = demo_lm.model(ids).logits
            assert counter.fired == 1
    assert torch.equal(logits[1.0], clean)
    assert (logits[0.0] - clean).abs().max() > 1e-3


@pytest.mark.parametrize(
    "wrong", [{"dims": [5]}, {"dims": [-1]}, {"dims": [0.5]}, {"scale": float("nan")}, {"scale": [1, 2]}]
)
def test_an_impossible_edit_is_refused(demo_dictionary, nfm, wrong):
    with pytest.raises(InvalidInput):
        interaction_edit(demo_dictionary, nfm, **wrong)
