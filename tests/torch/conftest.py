"""Fixtures of several tests."""

from __future__ import annotations

import pytest
import torch

from tests.torch.models import config, net
from vbfmt.torch import (
    inject,
)


@pytest.fixture
def model():
    torch.manual_seed(3)
    made = net()
    inject(made, config())
    return made
