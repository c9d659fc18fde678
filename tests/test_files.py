"""JSON that is written and hashed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from neurollm.files import sha256_json, write_json


def test_numbers_of_numpy_are_written_and_hashed_as_those_of_python(tmp_path):
    plain, numpy = {"n": 5, "x": 0.5, "on": True}, {"n": np.int64(5), "x": np.float32(0.5), "on": np.bool_(True)}
    write_json(tmp_path / "a.json", numpy)
    assert json.loads((tmp_path / "a.json").read_text()) == plain
    assert sha256_json(numpy) == sha256_json(plain)


@pytest.mark.parametrize("value", [np.zeros(3), {1, 2}])
def test_what_is_no_json_is_refused_and_leaves_no_file(tmp_path, value):
    with pytest.raises(TypeError, match=type(value).__name__):
        write_json(tmp_path / "a.json", {"a": value})
    assert not list(tmp_path.iterdir())
