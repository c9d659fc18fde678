"""Shared fixtures: small real models and the optional development data."""

from __future__ import annotations

import os

# Many small matrix products: threads cost more than they give, and tests often share the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of development texts and models; tests that need it skip when it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the development data folder ../shared/data is not there")
    return SHARED_DATA


@pytest.fixture(scope="session")
def demo_lm():
    """The embedded model in float32."""
    from neurollm.models import load_model

    return load_model("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def demo_dictionary():
    """The embedded SAE."""
    from neurollm.dictionaries import load_dictionary

    return load_dictionary("demo")
