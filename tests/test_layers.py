"""Imports point down only (docs/architecture.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from unifluid_jax.systems import SYSTEMS as REGISTRY

ROOT = Path(__file__).parent.parent / "unifluid_jax"
# Package or file below unifluid_jax/ → layer; the longest prefix counts.
LAYER = {
  "core": 0, "__version__": 0,
  "ops": 1,
  "models": 2, "data": 2,
  "codecs": 3,
  "systems": 4, "evals": 4, "weights": 4,
  "train": 5, "evaluation": 5, "api": 5, "identity": 5, "requests": 5,
  "arguments": 5, "scores": 5, "studies": 5,
  "stages": 5, "dialogues": 5, "loading": 5, "exported": 5, "exporting": 5,
  "boxed": 5, "model_card": 5, "hub": 5, "drawings": 5, "mappers": 5,
  "rejection": 5, "policy": 5,
  "apps": 6,
  "aot": 6,
  "main": 7, "evaluate": 7, "generate": 7, "prepare": 7, "encode": 7,
  "compile": 7, "experiments": 7, "demo": 7, "instruct": 7,
  "export": 7, "app": 7, "best_of": 7, "reward": 7,
  "configs": 7,
}  # fmt: skip
CONFIGS = ROOT.parent / "configs"
FILES = sorted(ROOT.rglob("*.py"))
SYSTEMS = ("unifluid", "liquid", "unitoken", "vargpt", "var",
           "tokenizer_training", "vq_training")  # fmt: skip
CODECS = ("kl_vae", "vq", "multiscale_vq")
# What every system shares names none of them, and no codec.
SHARED = ("train", "data", "evals", "aot", "api", "encode", "evaluation",
          "identity", "scores", "loading", "exported",
          "core/parallel")  # fmt: skip


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
    level = LAYER[theirs] == LAYER[mine] and LAYER[mine] == 5
    assert down or same_folder or level, f"{path} imports {name}"


@pytest.mark.parametrize(
  "folder, banned",
  [
    ("data", ("jax", "flax")),
    ("models", ("unifluid_jax.data", "unifluid_jax.core.checkpoint")),
  ],
)
def test_banned_imports(folder, banned):
  for path in (ROOT / folder).rglob("*.py"):
    for name in imports(path):
      for ban in banned:
        assert name != ban and not name.startswith(f"{ban}."), (path, name)


def test_every_system_and_codec_is_known_here():
  modules = {s.partition(":")[0].rpartition(".")[2] for s in REGISTRY.values()}
  assert modules == set(SYSTEMS)
  files = {p.stem for p in (ROOT / "codecs").glob("*.py")}
  assert set(CODECS) == files - {
    "__init__",
    "cache",
    "copies",
    "encoding",
    "inputs",
  }


def test_shared_code_names_no_system_and_no_codec():
  names = {*REGISTRY, *SYSTEMS, *CODECS}
  for path in FILES:
    below = str(path.relative_to(ROOT))
    if not below.startswith(tuple(f"{s}." for s in SHARED)) and not (
      below.startswith(tuple(f"{s}/" for s in SHARED))
    ):
      continue
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Constant):
        assert node.value not in names, f"{below}: {node.value!r}"
    for name in imports(path):
      parts = name.split(".")
      inner = parts[1:2] in (["systems"], ["codecs"]) and parts[2:3]
      assert not (inner and inner[0] in names), f"{below} imports {name}"


def test_the_package_imports_no_configuration():
  """A run works from any directory; configurations may import the package."""
  for path in FILES:
    assert not [n for n in imports(path) if n.split(".")[0] == "configs"], path
  for path in CONFIGS.glob("*.py"):
    for name in imports(path):
      root = name.split(".")[0]
      assert root in ("configs", "unifluid_jax", "ml_collections"), (path, name)


def test_systems_do_not_import_one_another():
  for name in SYSTEMS:
    others = set(SYSTEMS) - {name}
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
  """A system is one file, which reads like its paper's method section."""
  systems = {ROOT / "systems" / f"{name}.py" for name in SYSTEMS}
  for path in FILES:
    limit = 500 if path in systems else 420
    assert len(path.read_text().splitlines()) <= limit, path
