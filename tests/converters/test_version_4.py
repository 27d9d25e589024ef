"""Adapters made with transformers 4, merged into and loaded on models of version 5, and compared
with PEFT's merge in version 4.

Needs a Python with transformers 4 and PEFT: VBFMT_TRANSFORMERS_4=PYTHON, or
build/transformers-4/bin/python (`make version-4` makes it and runs this).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")
pytest.importorskip("peft")

from tests.converters import made_by_version_4  # noqa: E402
from vbfmt import errors, pack  # noqa: E402
from vbfmt.converters import merge, read  # noqa: E402
from vbfmt.converters.peft import load_adapter  # noqa: E402

PYTHON = os.environ.get("VBFMT_TRANSFORMERS_4", "build/transformers-4/bin/python")
TOLERANCE = 1e-4
EXPERTS = ("mixtral", "qwen2_moe", "deepseek_v3")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(PYTHON).exists(), reason="no environment with transformers 4"),
]
families = pytest.mark.parametrize("family", made_by_version_4.FAMILIES)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return what transformers 4 has written, one folder for each model family."""
    folder = tmp_path_factory.mktemp("version4")
    subprocess.run(
        [os.path.abspath(PYTHON), made_by_version_4.__file__, folder], check=True, cwd=folder
    )
    return folder


def loaded(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    return getattr(transformers, config.architectures[0]).from_pretrained(folder)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def largest_difference(found, wanted):
    assert found.keys() == wanted.keys()
    return max(
        float((found[name].float() - tensor.float()).abs().max()) for name, tensor in wanted.items()
    )


def effect(made, family):
    """Return the difference of PEFT's merge from the base, to show that the adapter has an
    effect."""
    base = state(loaded(made / family / "base"))
    return largest_difference(base, state(loaded(made / family / "merged")))


@families
@pytest.mark.parametrize("saved_by", [4, 5])
def test_merged_into_a_base_that_either_version_saved(made, family, saved_by, tmp_path):
    base = made / family / "base"
    if saved_by == 5:
        loaded(base).save_pretrained(tmp_path / "base")
        base = tmp_path / "base"
    merge.write(merge.plan(read(made / family / "adapter"), base), tmp_path / "merged")
    wanted = state(loaded(made / family / "merged"))
    assert effect(made, family) > 100 * TOLERANCE
    found = largest_difference(state(loaded(tmp_path / "merged")), wanted)
    print(family, saved_by, f"{found:.1e} of {effect(made, family):.2f}")
    assert found <= TOLERANCE


@families
def test_loaded_into_a_running_model(made, family, tmp_path):
    packed = tmp_path / "x.vblora"
    pack(made / family / "adapter", packed)
    model = loaded(made / family / "base")
    if family in EXPERTS:
        with pytest.raises(errors.TargetError):
            load_adapter(model, packed)
        return
    found = state(load_adapter(model, packed).merge_and_unload())
    difference = largest_difference(found, state(loaded(made / family / "merged")))
    print(family, f"{difference:.1e}")
    assert difference <= TOLERANCE


def test_experts_merge_into_fused_parameters(made, tmp_path):
    """This includes a base of version 5 that stores fused experts."""
    base = tmp_path / "base"
    loaded(made / "mixtral" / "base").save_pretrained(base, save_original_format=False)
    merge.write(merge.plan(read(made / "mixtral" / "adapter"), base), tmp_path / "merged")
    wanted = state(loaded(made / "mixtral" / "merged"))
    assert largest_difference(state(loaded(tmp_path / "merged")), wanted) <= TOLERANCE
    shutil.rmtree(tmp_path / "merged")
