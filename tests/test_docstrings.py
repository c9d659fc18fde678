"""Examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import neurollm

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(neurollm.__path__, "neurollm.")
    if not module.name.endswith("__main__") and ".project" not in module.name
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
