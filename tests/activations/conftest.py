"""A tiny model, a tiny corpus and a finished harvest of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("activations_tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Matrices this small are slower with several threads, far slower on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_module():
    return tiny


@pytest.fixture(scope="session")
def lm():
    return tiny.tiny_lm()


@pytest.fixture(scope="session")
def corpus():
    from neurollm.activations import Corpus

    return Corpus(tiny.tiny_documents())


@pytest.fixture(scope="session")
def site():
    from neurollm.models import Site

    return Site(1)


@pytest.fixture(scope="session")
def dictionary(site):
    return tiny.TinyDictionary(site)


@pytest.fixture(scope="session")
def store(lm, corpus, site, tmp_path_factory):
    """float32, so that comparisons are exact."""
    from neurollm.activations import harvest

    folder = tmp_path_factory.mktemp("store")
    return harvest(lm, corpus, site, folder, tokens_per_shard=700, tokens_per_batch=256, dtype="float32", verbose=0)
