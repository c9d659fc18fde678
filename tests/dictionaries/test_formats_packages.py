"""What neurollm saves, the packages themselves load; run where they are installed."""

from pathlib import Path

import pytest
import torch

from neurollm.dictionaries import GatedSAE, JumpReLUSAE, Normalisation, ReLUSAE, TopKSAE, load_dictionary
from neurollm.dictionaries.architectures import MatchingPursuitSAE
from neurollm.dictionaries.formats import save_sparsify
from neurollm.models import Site

D, F = 8, 24


def draw(kind, seed=0, **options):
    """An SAE with random weights."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D, F), "W_dec": (F, D), "W_skip": (D, D), "b_dec": (D,)}
    names = [*kind.tensors, *(["W_skip"] if options.pop("skip", False) else [])]
    weights = {name: torch.randn(shapes.get(name, (F,)), generator=generator) for name in names}
    if "threshold" in weights:
        weights["threshold"] = weights["threshold"].abs()
    return kind(Site(6), weights, **options)


X = 2 * torch.randn(30, D, generator=torch.Generator().manual_seed(5)) + 1
LINEAR = Normalisation(torch.ones(D), 0.3)
MATRIX = Normalisation(None, torch.eye(D) + torch.randn(D, D, generator=torch.Generator().manual_seed(6)) / 10)
CROSS = {"target_site": Site(6, "mlp_out"), "subtract_decoder_bias": False}
SAES = {
    "standard": draw(ReLUSAE),
    "standard_scaled": draw(ReLUSAE, normalisation=LINEAR, subtract_decoder_bias=False),
    "standard_layer_norm": draw(ReLUSAE, normalisation=Normalisation(per_token="layer_norm")),
    "topk_scaled": draw(TopKSAE, k=4, normalisation=LINEAR),
    "topk_unit_norm": draw(TopKSAE, k=4, normalisation=Normalisation(per_token="unit_norm")),
    "jumprelu_matrix": draw(JumpReLUSAE, normalisation=MATRIX),
    "gated_matrix": draw(GatedSAE, normalisation=MATRIX, subtract_decoder_bias=False),
    "matching_pursuit": draw(MatchingPursuitSAE, normalisation=Normalisation(None, 0.5), residual_threshold=1.0),
    "transcoder": draw(ReLUSAE, **CROSS),
    "skip_transcoder": draw(ReLUSAE, **CROSS, skip=True),
    "jumprelu_transcoder": draw(JumpReLUSAE, **CROSS),
    "jumprelu_skip_transcoder": draw(JumpReLUSAE, **CROSS, skip=True),
}


@pytest.mark.parametrize("name", SAES)
def test_saelens_loads_what_neurollm_saves(tmp_path, name):
    package = pytest.importorskip("sae_lens")
    if name == "matching_pursuit":
        SAES[name].weights["W_dec"] /= SAES[name].weights["W_dec"].norm(dim=1, keepdim=True)
    SAES[name].save(tmp_path / "ours")
    folded, theirs = SAES[name].fold(), package.SAE.load_from_disk(tmp_path / "ours")
    torch.testing.assert_close(theirs.encode(X), folded.encode(X), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs(X), folded.reconstruct(X), rtol=1e-4, atol=1e-4)
    theirs.save_model(tmp_path / "theirs")
    for file in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()
    assert load_dictionary(tmp_path / "theirs", site=Site(6)).fingerprint == folded.fingerprint


def test_the_demo_is_a_dictionary_of_saelens(demo_dictionary):
    package = pytest.importorskip("sae_lens")
    from neurollm.datasets import demo_dictionary_path

    theirs = package.SAE.load_from_disk(demo_dictionary_path())
    x = torch.randn(20, 256, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(theirs(x), demo_dictionary.reconstruct(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transcoder", [False, True])
def test_sparsify_loads_what_neurollm_saves(tmp_path, transcoder):
    package = pytest.importorskip("sparsify")
    options = CROSS | {"skip": True} if transcoder else {"normalisation": LINEAR}
    sae = draw(TopKSAE, k=4, **options)
    if transcoder:
        sae = TopKSAE(Site(6, "mlp_in"), sae.weights, 4, **CROSS)
    saved = save_sparsify(sae, tmp_path)
    out = package.SparseCoder.load_from_disk(saved)(X)
    folded = sae.fold()
    features = torch.zeros(len(X), F).scatter_(1, out.latent_indices, out.latent_acts)
    torch.testing.assert_close(features, folded.encode(X), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.sae_out, folded.reconstruct(X), rtol=1e-4, atol=1e-4)
    assert isinstance(saved, Path) and load_dictionary(saved).fingerprint == folded.fingerprint
