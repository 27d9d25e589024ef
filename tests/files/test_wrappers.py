"""Removing the prefixes that PyTorch's wrappers add to names."""

from __future__ import annotations

import pytest

from vbfmt._files.wrappers import by_plain_name, parallel_prefix, without_wrappers


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("layers.0.q_proj", "layers.0.q_proj"),
        ("_orig_mod.layers.0.q_proj", "layers.0.q_proj"),
        ("layers.0._orig_mod.q_proj", "layers.0.q_proj"),
        ("a._fsdp_wrapped_module.b._checkpoint_wrapped_module.c", "a.b.c"),
        ("a._orig_mod._orig_mod", "a"),
        ("my_orig_mod.x_checkpoint_wrapped_module", "my_orig_mod.x_checkpoint_wrapped_module"),
        ("module.layers.0", "module.layers.0"),
    ],
)
def test_prefixes_of_wrappers_are_removed_anywhere_in_a_name(name, plain):
    assert without_wrappers(name) == plain


def test_the_prefix_module_is_removed_only_if_every_name_has_it():
    assert parallel_prefix(["module.a", "module.b.c"]) == "module."
    assert parallel_prefix(["module.module.a", "module.module.b"]) == "module.module."
    assert parallel_prefix(["module.a", "b"]) == ""
    assert parallel_prefix([]) == ""


def test_names_that_become_the_same_are_found_together():
    assert by_plain_name(["a._orig_mod.b", "a.b", "c"]) == {
        "a.b": ["a._orig_mod.b", "a.b"],
        "c": ["c"],
    }
