"""Tests that compile for TPUs, which takes libtpu and no TPU."""

import importlib.util

import pytest

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu (extra tpu) is missing",
)
