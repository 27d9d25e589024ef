"""Fixtures of the plugin's tests."""

from tests.converters.vllm.fakes import vllm as vllm
