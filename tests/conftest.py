"""Eight fake CPU devices for every test, before jax starts.

Programs of a test run once or twice: compiling them well is not worth it. The
emitters of fusions alone would take two thirds of the time that compilers do.
Commands that tests start share what they compile, for one session, and leave
the user's own cache alone.
"""

import atexit
import os
import secrets
import shutil
import tempfile
from unittest import mock

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_force_host_platform_device_count=8"
  + " --xla_backend_optimization_level=0"
  + " --xla_cpu_use_fusion_emitters=false"
)
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit it
  cache = tempfile.mkdtemp(prefix="unifluid_jax_tests_")
  os.environ["XDG_CACHE_HOME"] = cache
  atexit.register(shutil.rmtree, cache, ignore_errors=True)


@pytest.fixture(scope="session")
def bucket():
  """gs://..., which an emulator on this machine serves."""
  pytest.importorskip("gcp_storage_emulator", reason="of the extra `test`")
  from tests import gcs_emulator

  with gcs_emulator.running() as env, mock.patch.dict(os.environ, env):
    yield f"gs://{gcs_emulator.BUCKET}"


@pytest.fixture
def gcs(bucket):
  """A folder of the bucket, each test's own: tests in any order never meet."""
  return f"{bucket}/{secrets.token_hex(4)}"
