"""What `pip install .` brings is enough, in a directory without a checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """The files of a wheel, without a wheel."""
  target = tmp_path_factory.mktemp("installed")
  build = ["setup.py", "--quiet", "build_py", f"--build-lib={target}"]
  subprocess.run(
    [sys.executable, *build],
    cwd=REPO, check=True, capture_output=True,
  )  # fmt: skip
  return target


def test_every_file_of_the_packages_is_installed(installed):
  def names(root):
    return {
      str(path.relative_to(root))
      for folder in ("unifluid_jax", "configs")
      for path in (root / folder).rglob("*")
      if path.is_file() and "__pycache__" not in path.parts
    }

  assert names(installed) == names(REPO)


def test_commands_work_in_an_empty_directory(installed, tmp_path):
  code = (
    f"import runpy, sys; sys.path.insert(0, {str(installed)!r}); "
    "import unifluid_jax; print(unifluid_jax.__file__); "
    "sys.argv = ['prepare', *sys.argv[1:]]; "
    "runpy.run_module('unifluid_jax.prepare', None, '__main__', True)"
  )
  flags = [
    "--config=configs/debug.py", "--config.data.world.train=8",
    "--config.data.world.validation=4", "--config.data.world.held_out=4",
    "--config.text.train_vocab=64",
  ]  # fmt: skip
  done = subprocess.run(
    [sys.executable, "-P", "-c", code, *flags],
    cwd=tmp_path, capture_output=True, text=True, check=False,
    env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(str(installed))
  assert "unifluid_jax.prepare: debug" in done.stdout
  assert (tmp_path / "runs/debug/data/tokenizer.model").exists()
