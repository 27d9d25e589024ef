"""Fixtures of several tests."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

collect_ignore_glob = [] if find_spec("torch") else ["*.py", "pool/*.py"]


@pytest.fixture
def model():
    import torch

    from tests.torch.models import config, net
    from vbfmt.torch import inject

    torch.manual_seed(3)
    made = net()
    inject(made, config())
    return made
