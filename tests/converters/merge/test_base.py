"""Reading a base: equal tensors, needed files and the config."""

from __future__ import annotations

import numpy as np
import pytest

from tests.converters.merge.folders import save_base, tensor_of
from vbfmt import errors
from vbfmt.converters.merge import base as bases


def test_equal_tensors_outside_of_layers_are_found(tmp_path):
    one, other = tensor_of(np.ones((4, 3))), tensor_of(np.zeros((4, 3)))
    tensors = {"embed": one, "head": one, "other": other, "layers.0.q": one}
    model = bases.read(save_base(tmp_path / "base", tensors))
    assert list(model.equal_to("embed")) == ["embed", "head"]
    assert list(model.equal_to("layers.0.q")) == ["embed", "head"]
    assert list(model.equal_to("other")) == ["other"]


def test_the_files_that_a_merge_needs():
    names = ["config.json", "model.safetensors", "README.md", ".gitattributes"]
    assert bases.needed(names) == ["model.safetensors", "config.json", "README.md"]
    assert bases.needed(["config.json", "tf_model.h5"]) == []


@pytest.mark.parametrize("content", ["[]", "1", '"text"', "null"])
def test_json_that_is_not_an_object_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(errors.SourceError, match=f"not a JSON object in {tmp_path}/config.json"):
        bases.json_object(str(tmp_path / "config.json"))
