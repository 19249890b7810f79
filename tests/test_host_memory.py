"""Where the allocator is told to keep what is freed, and what that changes."""

import ctypes
import os
import subprocess
import sys

import jax
import pytest

from unifluid_jax.core import host_memory

# Frees a block of 64 MiB, and prints how much of it the process still holds.
FREES = """
import resource
import numpy as np
from unifluid_jax.core import host_memory
print(host_memory.keep_freed())
def pages():
  block = np.ones(2**26, np.uint8)
  del block
for _ in range(2):
  pages()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
  pages()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def frees(**env):
  env = {k: v for k, v in os.environ.items() if "MALLOC" not in k} | env
  out = subprocess.run(
    [sys.executable, "-c", FREES], env=env, capture_output=True, text=True,
    check=True,
  )  # fmt: skip
  changed, faults = out.stdout.split()
  return changed == "True", int(faults)


@pytest.mark.skipif(
  not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library"
)
def test_freed_blocks_serve_again_without_new_pages():
  changed, faults = frees(JAX_PLATFORMS="cpu")
  assert changed and faults < 100
  changed, usual = frees(JAX_PLATFORMS="cpu", MALLOC_TOP_PAD_="0")
  assert not changed and usual > 4 * 32  # 32 huge pages, or 16,384 small ones


@pytest.mark.parametrize(
  "platforms, cpus", [("cpu", True), ("cuda,cpu", False), ("tpu", False)]
)
def test_other_devices_keep_the_usual_allocator(monkeypatch, platforms, cpus):
  monkeypatch.setattr(type(jax.config), "jax_platforms", platforms,
                      raising=False)  # fmt: skip
  assert host_memory.on_cpus() == cpus


def test_without_a_choice_packages_decide(monkeypatch):
  monkeypatch.setattr(type(jax.config), "jax_platforms", None, raising=False)
  monkeypatch.setattr(
    host_memory.importlib.metadata, "entry_points", lambda group: []
  )
  monkeypatch.setattr(
    host_memory.importlib.util, "find_spec", lambda name: None
  )
  assert host_memory.on_cpus()
  monkeypatch.setattr(
    host_memory.importlib.util, "find_spec", lambda name: name == "libtpu"
  )
  assert not host_memory.on_cpus()
