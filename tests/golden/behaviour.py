"""What commands of the package do, recorded; two trees are compared by it.

  python -m tests.golden.behaviour OUT.json [name ...]
  python -m tests.golden.behaviour --compare A.json B.json [--except=GLOB ...]

Every trace runs commands on tiny configurations, in a temporary directory and
with the package of the checkout this file stands in, and keeps the rows of
metrics.jsonl, a digest of every array of the checkpoints, of the pixels that
are drawn and of the batches, and the answers. Only commands, the files they
leave and the getters of configs/ are used, so that one recorder serves trees
whose modules differ; `_batches` alone looks inside.

Digests are those of one machine: compare recordings of one.
"""

import argparse
import fnmatch
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
STEPS = 6
PROMPTS = ("a red circle", "two green squares")
QUESTION = "what colour is the circle"
# Words in names of columns of metrics.jsonl that tell time.
_TIMES = ("time", "second", "began", "mfu", "goodput")

# ------------------------------------------------------------ Configurations


def _setting(tree: Any, key: str) -> Any:
  """The node of a tree that holds `key`, wherever it stands."""
  if key in tree:
    return tree
  for value in tree.values():
    if hasattr(value, "keys") and (node := _setting(value, key)) is not None:
      return node
  return None


def _set(tree: Any, **values: Any) -> None:
  """Sets keys whose place differs between trees; their names are unique."""
  for key, value in values.items():
    node = _setting(tree, key)
    if node is None:
      raise KeyError(f"no {key} in the configuration")
    node[key] = value


def _start_from(tree: Any, old: str, new: str) -> None:
  """Replaces the path of the run that `tree.init` starts from."""
  keys = [key for key, value in tree.init.items() if value == old]
  if not keys:
    raise KeyError(f"init names no {old}: {tree.init}")
  for key in keys:
    tree.init[key] = new


def _common(c: Any, name: str) -> Any:
  """Sizes and places that all traces share; a checkpoint every step."""
  c.name, c.steps = name, STEPS
  c.data.root = "data"
  c.text.tokenizer = "data/tokenizer.model"
  c.model.vae_path = "codec"
  c.optim.warmup = 2
  c.checkpoint = dict(every=1, keep=STEPS, keep_every=0)
  c.log.update(every=1, tensorboard=False)
  return c


def _cached(accumulate: int = 1) -> Any:
  from configs import debug

  c = _common(debug.get_config(), "cached")
  c.accumulate = accumulate
  _set(c, random_until=2, raster_from=5)
  c.eval.metrics = ("geneval", "fid", "captions", "vqa")
  return c


def _text(accumulate: int = 1) -> Any:
  c = _cached(accumulate)
  c.name = "text"
  c.batch = dict(t2i=0, i2t=0, edit=0, text=16)
  return c


def _edits() -> Any:
  from configs import edit, shapes

  c, small = edit.get_config("shapes"), _cached()
  for node in ("data", "text", "model", "sampling"):
    c[node] = small[node]
  c = _common(c, "edits")
  c.model.edit_latents = True
  c.data.flip = True
  c.data.train.shapes.moments = ""  # pixels
  c.batch = dict(t2i=4, i2t=4, edit=8, text=0)
  _start_from(c, shapes.ROOT, "cached")
  return c


def _transfer() -> Any:
  """Answers that count alike; all but the language model is frozen."""
  from configs import debug, transfer

  c = _common(transfer.get_config("infovqa,debug"), "transfer")
  c.data.update(root="sets", threads=1)
  c.batch.i2t = 8
  c.text.update(prefix=56, suffix=16)
  c.optim.update(lr=1e-3, weight_decay=1e-3)
  c.optim.rates.vit = 0.0
  c.model.decoder.dropout = 0.1
  c.sampling.update(text="beam", beams=2)
  _start_from(c, "runs/debug", "cached")
  assert debug.ROOT == "runs/debug"
  return c


def _vae(adversarial: float) -> Any:
  from configs import debug

  c = _common(debug.get_config("vae"), "vae")
  if adversarial:
    _set(
      c, adversarial=adversarial, adversarial_start=STEPS // 2 + 1,
      discriminator_width=8, discriminator_layers=2,
    )  # fmt: skip
  else:
    c.steps = 2
  return c


TREES = {
  "tokenizer": functools.partial(_vae, 0.0),
  "cached": _cached,
  "edits": _edits,
  "transfer": _transfer,
  "vae": functools.partial(_vae, 0.5),
  "text": _text,
  "cached_2": functools.partial(_cached, 2),
  "text_2": functools.partial(_text, 2),
}

# ------------------------------------------------------------------ Commands


class Place:
  """A temporary directory in which commands run; what they share, once."""

  def __init__(self, root: Path):
    self.root = root
    flags = "--xla_backend_optimization_level=0"
    self._env = dict(
      os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=flags, PYTHONPATH=str(REPO)
    )
    (root / "golden.py").write_text(
      "from tests.golden import behaviour\n\n\n"
      "def get_config(arg):\n  return behaviour.TREES[arg]()\n"
    )

  def call(self, *command: str) -> str:
    """Standard output of `python -m ...`.

    Raises:
      RuntimeError: it failed; with the end of what it said.
    """
    done = subprocess.run(
      [sys.executable, "-m", *command],
      cwd=self.root, env=self._env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
      said = done.stdout[-2000:] + done.stderr[-4000:]
      raise RuntimeError(f"{' '.join(command)} failed:\n{said}")
    return done.stdout

  def run(self, entry: str, tree: str, *args: str) -> str:
    """A command of the package with one of the configurations above."""
    return self.call(
      f"unifluid_jax.{entry}", f"--config=golden.py:{tree}", *args
    )

  @functools.cached_property
  def prepared(self) -> dict[str, Any]:
    """World, text tokenizer, autoencoder, cached moments."""
    from PIL import Image

    self.run("prepare", "cached")
    self.run("main", "tokenizer", "--workdir=codec")
    self.run("encode", "cached")
    ramp = bytes(range(256)) * 12
    Image.frombytes("RGB", (32, 32), ramp).save(self.root / "seen.png")
    return {"text": _sha((self.root / "data/tokenizer.model").read_bytes())}

  @functools.cache  # noqa: B019
  def trained(self, tree: str) -> dict[str, Any]:
    """What a training run leaves, and its first batches."""
    assert self.prepared
    if tree in ("edits", "transfer"):
      self.trained("cached")
    self.run("main", tree, f"--workdir={tree}")
    batches = self.call("tests.golden.behaviour", "--batches", tree)
    return {
      "metrics": _rows(self.root / tree / "metrics.jsonl"),
      "checkpoints": dict(_checkpoints(self.root / tree)),
      "batches": json.loads(batches.splitlines()[-1]),
    }

  def drawn(self, tree: str, *args: str) -> dict[str, str]:
    """Digests of the pixels of images that `generate` draws."""
    from PIL import Image

    out = self.root / f"{tree}_drawn"
    out.mkdir(exist_ok=True)
    self.call("unifluid_jax.generate", f"--workdir={tree}", *args)
    return {
      str(path.relative_to(out)): _sha(Image.open(path).tobytes())
      for path in sorted(out.rglob("*.png"))
    }

  def said(self, tree: str, question: str) -> str:
    """The answer to a question about seen.png."""
    return self.call(
      "unifluid_jax.generate", f"--workdir={tree}", "--image=seen.png",
      f"--question={question}",
    )  # fmt: skip

  def scores(self, tree: str) -> dict[str, Any]:
    """Values and floors of the last checkpoint, by metric."""
    self.run(
      "evaluate", tree, f"--workdir={tree}", "--once", f"--step={STEPS}"
    )
    rows = _rows(self.root / tree / "metrics_eval.jsonl")
    if errors := [row for row in rows if "error" in row]:
      raise RuntimeError(f"evaluation failed: {errors}")
    return {
      row["metric"]: [row["value"], row["floor"]]
      for row in rows
      if "value" in row
    }


# -------------------------------------------------------------------- Traces


def _record(place: Place, name: str) -> dict[str, Any]:
  """All that is kept of one trace."""
  found = dict(place.trained(name))
  if name == "cached":
    prompts = [f"--prompt={prompt}" for prompt in PROMPTS]
    found["drawn"] = place.drawn(
      name, *prompts, "--samples=2", "--seed=3", f"--out={name}_drawn"
    )
    found["greedy"] = place.said(name, QUESTION)
    found["scores"] = place.scores(name)
  if name == "edits":
    found["drawn"] = place.drawn(
      name, "--image=seen.png", "--edit=change the red circle to green",
      f"--out={name}_drawn/edited.png",
    )  # fmt: skip
  if name == "transfer":
    found["beam"] = place.said(name, QUESTION)
    found["scores"] = place.scores(name)
  return found


TRACES = tuple(name for name in TREES if name != "tokenizer")


def record(names: list[str]) -> dict[str, Any]:
  """The named traces, all without names."""
  begin = time.monotonic()
  found: dict[str, Any] = {}
  with tempfile.TemporaryDirectory(prefix="golden_") as folder:
    place = Place(Path(folder))
    from tests import task_sets

    task_sets.make(Path(folder) / "sets")
    found["prepared"] = place.prepared
    for name in names or TRACES:
      found[name] = _record(place, name)
      print(f"{name}: {time.monotonic() - begin:.0f} s so far", flush=True)
  from tests.golden import trace  # sets flags of its own: last

  return {"machine": trace.machine(), **found}


def _rows(path: Path) -> list[dict[str, Any]]:
  """Rows of a .jsonl without times; floats keep every bit as JSON."""
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  return [
    {k: v for k, v in row.items() if not any(word in k for word in _TIMES)}
    for row in rows
  ]


def _checkpoints(workdir: Path) -> Iterator[tuple[str, dict[str, str]]]:
  """(step, {path: shape dtype digest}) of every checkpoint of a run."""
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  reader = ocp.PyTreeCheckpointer()
  folders = (workdir / "checkpoints").iterdir()
  steps = sorted(int(path.name) for path in folders if path.name.isdigit())
  for step in steps:
    path = workdir / "checkpoints" / str(step) / "state"
    meta = ocp.PyTreeCheckpointHandler().metadata(path)
    meta = getattr(meta, "item_metadata", meta)
    how = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
      getattr(meta, "tree", meta),
    )
    tree = reader.restore(path, restore_args=how)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    yield (
      str(step),
      {
        jax.tree_util.keystr(key, simple=True, separator="/"): (
          f"{np.shape(x)} {np.asarray(x).dtype} {_sha(np.asarray(x).tobytes())}"
        )
        for key, x in leaves
      },
    )


def _sha(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()[:16]


def _batches(tree: Any) -> list[dict[str, list[str]]]:
  """Digests of the arrays of two batches by task, without fields' names.

  The one place that imports the pipeline. Ids below zero are padding and
  count as 0; an array without elements says nothing and is left out.
  """
  import numpy as np

  try:
    from unifluid_jax.core.config import resolve
  except ImportError:
    from unifluid_jax.config import resolve
  from unifluid_jax.data import pipeline, text

  config = resolve(tree)
  tokenizer = text.Tokenizer.load(config.text.tokenizer)
  loader = pipeline.make_loader(config, tokenizer)
  found = []
  for _ in range(2):
    batch = next(loader)
    tasks = batch if isinstance(batch, dict) else batch._asdict()
    digests = {}
    for task, fields in tasks.items():
      if fields is None:
        continue
      arrays = fields.values() if isinstance(fields, dict) else fields
      # An autoencoder's images are the task `image`, or pose as `t2i`.
      digests["t2i" if task == "image" else task] = sorted(
        _sha((x if x.dtype.kind == "f" else np.maximum(x, 0)).tobytes())
        for x in arrays
        if x is not None and x.size
      )
    found.append(digests)
  loader.close()
  return found


# ------------------------------------------------------------------- Compare


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
  if isinstance(value, dict | list):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in items:
      yield from _flat(each, f"{path}:{key}" if path else str(key))
  else:
    yield path, value


def differences(a: Any, b: Any, exempt: list[str]) -> list[str]:
  """A line per value that differs or that only one of them has."""
  one, other = dict(_flat(a)), dict(_flat(b))
  return [
    f"{key}: {one.get(key, 'missing')!r} != {other.get(key, 'missing')!r}"
    for key in sorted(one.keys() | other.keys())
    if repr(one.get(key, "missing")) != repr(other.get(key, "missing"))
    and not any(fnmatch.fnmatchcase(key, glob) for glob in exempt)
  ]


def main() -> None:
  """Records, compares, or prints digests of batches for the recorder."""
  parser = argparse.ArgumentParser(prog="python -m tests.golden.behaviour")
  parser.add_argument("out", nargs="?", help="JSON file to write")
  parser.add_argument("names", nargs="*", help=", ".join(TRACES))
  parser.add_argument("--compare", nargs=2, metavar=("A.json", "B.json"))
  parser.add_argument("--except", action="append", default=[], dest="exempt")
  parser.add_argument("--batches", choices=TREES, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.batches:
    print(json.dumps(_batches(TREES[args.batches]())))
  elif args.compare:
    a, b = (json.loads(Path(path).read_text()) for path in args.compare)
    lines = differences(a, b, args.exempt)
    print("\n".join(lines) or "no difference")
    sys.exit(bool(lines))
  elif args.out and set(args.names) <= set(TRACES):
    Path(args.out).write_text(json.dumps(record(args.names), indent=1) + "\n")
  else:
    parser.error(f"give OUT.json and names among {', '.join(TRACES)}")


if __name__ == "__main__":
  main()
