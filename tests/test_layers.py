"""Imports point down only (docs/architecture.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "unifluid_jax"
LAYER = {
  "types": 0, "config": 0, "freeze": 0, "presets": 0, "files": 0,
  "digests": 0, "interrupt": 0, "lock": 0, "ranges": 0, "combinations": 0,
  "jsonl": 0,
  "ops": 1, "parallel": 1, "xla_options": 1, "checkpoint_files": 1,
  "models": 2, "data": 2, "checkpoint": 2, "optim": 2, "telemetry": 2,
  "metric_writers": 2,
  "systems": 3, "evals": 3, "weights": 3,
  "identity": 4, "latents": 4,
  "train": 4, "warm_start": 4, "aot": 4, "eval_loop": 4, "api": 4, "cli": 4,
  "stopping": 4, "workdirs": 4,
  "config_files": 4, "compile_cache": 4, "requests": 4, "stages": 4,
  "main": 5, "evaluate": 5, "generate": 5, "prepare": 5, "encode": 5,
  "compile": 5, "experiments": 5, "demo": 5,
}  # fmt: skip
FILES = sorted(ROOT.rglob("*.py"))


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (a.name for a in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{node.module}.{a.name}" for a in node.names)


def part(path):
  parts = path.relative_to(ROOT).with_suffix("").parts
  return "main" if parts[-1] == "__main__" else parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
  if path == ROOT / "__init__.py":
    return
  mine = part(path)
  for name in imports(path):
    parts = name.split(".")
    if parts[0] != "unifluid_jax":
      continue
    theirs = parts[1]
    assert theirs in LAYER, f"{path}: add {theirs} to the layers"
    down = LAYER[theirs] < LAYER[mine]
    same_folder = theirs == mine
    level = LAYER[theirs] == LAYER[mine] and LAYER[mine] in (0, 1, 4)
    assert down or same_folder or level, f"{path} imports {name}"


@pytest.mark.parametrize(
  "folder, banned",
  [
    ("data", ("jax", "flax")),
    ("models", ("unifluid_jax.data", "unifluid_jax.checkpoint")),
  ],
)
def test_banned_imports(folder, banned):
  for path in (ROOT / folder).rglob("*.py"):
    for name in imports(path):
      for ban in banned:
        assert name != ban and not name.startswith(f"{ban}."), (path, name)


def test_systems_do_not_import_one_another():
  for name in ("unifluid", "vae"):
    others = {"unifluid", "vae"} - {name}
    for imported in imports(ROOT / "systems" / f"{name}.py"):
      tail = imported.removeprefix("unifluid_jax.systems.").split(".")[0]
      assert not (imported.startswith("unifluid_jax.systems.")
                  and tail in others), imported  # fmt: skip


def test_no_tensorflow_at_start():
  """Importing TensorFlow costs seconds and is no dependency."""
  for module in ("main", "evaluate"):
    code = (
      f"import sys, unifluid_jax.{module}; "
      "sys.exit('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 0


def test_no_file_outgrows_its_job():
  for path in FILES:
    assert len(path.read_text().splitlines()) <= 420, path
