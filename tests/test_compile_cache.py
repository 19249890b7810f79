"""Where compiled programs are kept, and when."""

import os

import jax
import pytest

from unifluid_jax.core import compile_cache


@pytest.fixture
def settings(monkeypatch, tmp_path):
  """No cache at first; what is switched on is switched off again."""
  names = (
    "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
  )  # fmt: skip
  before = {name: getattr(jax.config, name) for name in names}
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  jax.config.update("jax_compilation_cache_dir", None)
  yield tmp_path / "unifluid_jax" / "compiled"
  for name, value in before.items():
    jax.config.update(name, value)


def test_programs_are_kept_in_the_users_cache(settings):
  compile_cache.enable()
  assert jax.config.jax_compilation_cache_dir == str(compile_cache.folder())
  assert compile_cache.folder().parent == settings


def test_a_cache_that_the_environment_names_is_left_alone(settings):
  jax.config.update("jax_compilation_cache_dir", "/elsewhere")
  compile_cache.enable()
  assert jax.config.jax_compilation_cache_dir == "/elsewhere"


def test_another_cpu_has_another_folder(monkeypatch):
  """JAX's keys do not tell CPUs apart; programs may use their instructions."""
  found = set()
  for instructions in ("sse4_2 avx2", "sse4_2 avx2 avx512f", "sse4_2 avx2"):
    text = f"processor : 0\nflags\t\t: {instructions}\ncpu MHz : 1\n"
    monkeypatch.setattr(compile_cache.Path, "read_text", lambda _, t=text: t)
    found.add(compile_cache.cpu_features())
  assert len(found) == 2


def test_the_oldest_programs_make_room(tmp_path):
  for age, name in enumerate(("new", "middle", "old")):
    (tmp_path / name).write_bytes(bytes(10))
    os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
  compile_cache.trim(tmp_path, 20)
  assert {p.name for p in tmp_path.iterdir()} == {"new", "middle"}
  compile_cache.trim(tmp_path / "missing", 20)
