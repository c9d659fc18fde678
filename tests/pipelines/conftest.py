"""Fixtures of the pipeline tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.projects import write_project


@pytest.fixture
def project(tmp_path) -> Path:
    """Pipeline file of a fresh small project."""
    return write_project(tmp_path)
