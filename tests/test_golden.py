"""Training steps and parameter tables are those pinned in tests/golden."""

import json

import numpy as np
import pytest

from tests.golden import layout, trace


@pytest.mark.parametrize("name", layout.CONFIGS)
def test_parameters_are_split_decayed_and_updated_as_pinned(name):
  """`python -m tests.golden.layout` rewrites them."""
  pinned = layout.file_of(name).read_text()
  assert layout.table(name).splitlines() == pinned.splitlines()


@pytest.mark.parametrize("optimizer", trace.OPTIMIZERS)
@pytest.mark.parametrize("system", trace.SYSTEMS)
def test_training_steps_are_those_pinned(system, optimizer):
  """`python -m tests.golden.trace` rewrites them."""
  pinned = json.loads(trace.FILE.read_text())
  want = pinned[f"{system} {optimizer}"]
  got = trace.trace(system, optimizer)
  assert sorted(got) == sorted(want)
  if pinned["machine"] == trace.machine():
    assert got == want
  for name, values in want.items():
    np.testing.assert_allclose(got[name][0], values[0], rtol=1e-5, err_msg=name)
