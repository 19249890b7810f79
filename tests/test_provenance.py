"""What is recorded of the commands that work on a run."""

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from unifluid_jax.core import provenance

PACKAGE = Path(provenance.__file__).parents[1]


def test_a_row_for_each_start(tmp_path, monkeypatch):
  argv = [str(PACKAGE / "main.py"), "--config=configs/shapes.py", "--x=a b"]
  monkeypatch.setattr(sys, "argv", argv)
  provenance.record(str(tmp_path), 0, provenance.TRAINING)
  monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest", "--config=a"])
  provenance.record(str(tmp_path), 7, provenance.EVALUATION)
  provenance.record(str(tmp_path), 9, provenance.EVALUATION)  # no second row
  first, second = provenance.read(str(tmp_path))
  assert first["command"] == (
    "python -m unifluid_jax.main --config=configs/shapes.py '--x=a b'"
  )
  assert (first["step"], first["work"]) == (0, "training")
  assert first["config"] == "configs/shapes.py"
  assert first["targets"]["geneval/overall"] == [">=", 0.65]
  assert first["versions"]["jax"] == jax.__version__
  assert (second["step"], second["work"]) == (7, "evaluation")
  # No program of this package: its flags mean something else.
  assert second["command"] is second["config"] is None
  assert second["targets"] == {}
  assert provenance.read(str(tmp_path / "none")) == []


@pytest.mark.parametrize(
  "words, config, targets",
  [
    (["--config=configs/shapes.py"], "configs/shapes.py", True),
    (["--config", "configs/shapes.py"], "configs/shapes.py", True),
    (["--config=configs/shapes.py:t2i_only"], "configs/shapes.py:t2i_only",
     False),
    (["--config=configs/shapes.py", "--config.steps=3"], "configs/shapes.py",
     False),
    (["--workdir=x"], None, False),
  ],
)  # fmt: skip
def test_targets_are_of_the_file_as_it_is(words, config, targets):
  found = provenance.describe([str(PACKAGE / "main.py"), *words])
  assert found["config"] == config
  assert bool(found["targets"]) == targets


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_the_commit_is_the_codes_own(tmp_path, monkeypatch):
  package = tmp_path / "unifluid_jax"
  package.mkdir()
  (package / "a.py").write_text("1")
  monkeypatch.setattr(provenance, "_PACKAGE", package)

  def git(*words):
    user = ["-c", "user.name=a", "-c", "user.email=a"]
    command = ["git", "-C", str(tmp_path), *user, *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()

  git("init")
  git("add", ".")
  git("commit", "-m", "x")
  git("tag", "v1")
  commit = git("rev-parse", "HEAD")[:12]
  assert provenance.commit() == commit
  (package / "a.py").write_text("2")
  assert provenance.commit() == f"{commit}-dirty"
  # An environment inside somebody's repository is not that repository's.
  inner = tmp_path / "env" / "unifluid_jax"
  inner.mkdir(parents=True)
  monkeypatch.setattr(provenance, "_PACKAGE", inner)
  assert provenance.commit() != commit
