"""What the tests of the app share."""

import pytest

from tests.apps.runs import maker


@pytest.fixture(scope="session")
def make_run(tmp_path_factory):
  """See `runs.maker`."""
  return maker(tmp_path_factory.mktemp("apps"))
