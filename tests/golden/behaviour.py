"""What commands of the package do, recorded; two trees are compared by it.

  python -m tests.golden.behaviour OUT.json [name ...]
  python -m tests.golden.behaviour --compare A.json B.json [--except=GLOB ...]

Every trace runs commands of this checkout on tiny configurations and keeps
losses, digests of checkpoints, pixels and batches, answers and scores. Only
commands, the files they leave and the getters of configs/ are used, so that
one recorder serves trees whose modules differ; `_batches` alone looks inside.
Compare recordings of one machine. GLOB: exempt, e.g. "transfer:*:grad_norm".
"""

import argparse
import contextlib
import fnmatch
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs import debug, edit, shapes, transfer

REPO = Path(__file__).resolve().parents[2]
STEPS = 6
_TIMES = ("time", "second", "began", "mfu", "goodput")  # in names of columns


def _set(tree: Any, **values: Any) -> None:
  """Sets keys whose place differs between trees; their names are unique."""
  nodes = [tree]
  for node in nodes:
    nodes += [v for v in node.values() if hasattr(v, "keys")]
  for key, value in values.items():
    (node,) = (n for n in nodes if key in n)
    node[key] = value


def _common(c: Any, name: str, steps: int = STEPS) -> Any:
  """Places that all traces share; a checkpoint every step."""
  c.name, c.steps = name, steps
  c.data.root = "data"
  c.text.tokenizer = "data/tokenizer.model"
  if "vae_path" in c.model:  # the codec itself has none
    c.model.vae_path = "codec"
  c.optim.warmup = 2
  c.checkpoint = dict(every=1, keep=STEPS, keep_every=0)
  c.log.update(every=1, tensorboard=False)
  return c


def _cached(accumulate: int = 1) -> Any:
  c = _common(debug.get_config(), "cached")
  c.accumulate = accumulate
  _set(c, random_until=2, raster_from=5)
  c.eval.metrics = ("geneval", "fid", "captions", "vqa")
  return c


def _text(accumulate: int = 1) -> Any:
  c = _cached(accumulate)
  c.batch = dict(t2i=0, i2t=0, edit=0, text=16)
  return c


def _edits() -> Any:
  """From pixels, with source tokens and flips."""
  c, small = edit.get_config("shapes"), _cached()
  for node in ("data", "text", "model", "sampling"):
    c[node] = small[node]
  c = _common(c, "edits")
  c.model.edit_latents = c.data.flip = True
  c.data.train.shapes.moments = ""
  c.batch = dict(t2i=4, i2t=4, edit=8, text=0)
  c.init = {k: "cached" if v == shapes.ROOT else v for k, v in c.init.items()}
  return c


def _transfer() -> Any:
  """Each answer counts alike; all but the language model is frozen."""
  c = _common(transfer.get_config("okvqa,debug"), "transfer")
  c.data.update(root="sets", threads=1)
  c.batch.i2t = 8
  c.text.update(prefix=56, suffix=16)
  c.optim.update(lr=1e-2, weight_decay=1e-3)
  c.optim.rates.vit = 0.0
  c.model.decoder.dropout = c.loss.label_smoothing = 0.1
  c.sampling.update(text="beam", beams=2)
  c.init = {k: "cached" if v == debug.ROOT else v for k, v in c.init.items()}
  return c


def _vae() -> Any:
  c = _common(debug.get_config("vae"), "vae")
  _set(c, adversarial=0.5, adversarial_start=STEPS // 2 + 1)
  _set(c, discriminator_width=8, discriminator_layers=2)
  return c


TREES = {
  "codec": lambda: _common(debug.get_config("vae"), "codec", steps=2),
  "cached": _cached,
  "edits": _edits,
  "transfer": _transfer,
  "vae": _vae,
  "text": _text,
  "cached_2": lambda: _cached(accumulate=2),
  "text_2": lambda: _text(accumulate=2),
}
TRACES = tuple(name for name in TREES if name != "codec")


def _call(module: str, *args: str) -> str:
  """Standard output of `python -m module`, on one CPU device."""
  env = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(REPO))
  env["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiles faster
  command = [sys.executable, "-m", module, *args]
  return subprocess.check_output(command, env=env, text=True)


def _run(entry: str, tree: str, *args: str) -> str:
  """A command about a run: its configuration and folder have one name."""
  flags = [f"--workdir={tree}"] if entry not in ("prepare", "encode") else []
  if entry != "generate":
    flags.append(f"--config=golden.py:{tree}")
  return _call(f"unifluid_jax.{entry}", *flags, *args)


def _prepare() -> dict[str, str]:
  """World, tokenizer, autoencoder, cached moments; raw sets; an image."""
  from tests import task_sets

  body = "def get_config(arg):\n  return behaviour.TREES[arg]()\n"
  Path("golden.py").write_text(f"from tests.golden import behaviour\n{body}")
  _run("prepare", "cached")
  _run("main", "codec")
  _run("encode", "cached")
  task_sets.make(Path("sets"))
  Image.frombytes("RGB", (32, 32), bytes(range(256)) * 12).save("seen.png")
  return {"tokenizer": _sha(np.fromfile("data/tokenizer.model", np.uint8))}


def _record(name: str) -> dict[str, Any]:
  """All that is kept of one trace."""
  for each in ("cached", name) if name in ("edits", "transfer") else (name,):
    if not Path(each).exists():
      _run("main", each)
  batches = _call("tests.golden.behaviour", "--batches", name)
  found = {
    "metrics": _rows(Path(name, "metrics.jsonl")),
    "checkpoints": _checkpoints(Path(name, "checkpoints")),
    "batches": json.loads(batches.splitlines()[-1]),
  }
  drawn = {
    "cached": ["--prompt=a red circle", "--prompt=two green squares",
               "--samples=2", "--seed=3"],
    "edits": ["--image=seen.png", "--edit=change the red circle to green"],
  }  # fmt: skip
  if name in drawn:
    _run("generate", name, *drawn[name], f"--out={name}_drawn")
    files = sorted(Path(f"{name}_drawn").glob("*.png"))
    found["drawn"] = {f.name: _sha(Image.open(f)) for f in files}
  if name in ("cached", "transfer"):
    question = "--question=what colour is the circle"
    found["answer"] = _run("generate", name, "--image=seen.png", question)
    _run("evaluate", name, "--once", f"--step={STEPS}")
    rows = [r for r in _rows(Path(name, "metrics_eval.jsonl")) if "value" in r]
    found["scores"] = {r["metric"]: [r["value"], r["floor"]] for r in rows}
  return found


def record(names: Sequence[str]) -> dict[str, Any]:
  """The named traces; says how long they took."""
  found, begin = {}, time.monotonic()
  with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    found["prepared"] = _prepare()
    for name in names:
      found[name] = _record(name)
      print(f"{name}: {time.monotonic() - begin:.0f} s so far", flush=True)
  from tests.golden import trace  # sets flags of its own: last

  return {"machine": trace.machine(), **found}


def _rows(path: Path) -> list[dict[str, Any]]:
  """Rows of a .jsonl without times; JSON keeps every bit of a float."""
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  return [
    {k: v for k, v in row.items() if not any(word in k for word in _TIMES)}
    for row in rows
  ]


def _checkpoints(root: Path) -> dict[str, dict[str, str]]:
  """Step → path of an array → its shape, dtype and digest."""
  import orbax.checkpoint as ocp
  from jax.tree_util import keystr, tree_leaves_with_path

  found = {}
  for path in sorted(root.glob("*/state")):
    tree = ocp.PyTreeCheckpointer().restore(path.absolute())
    leaves = [(k, np.asarray(x)) for k, x in tree_leaves_with_path(tree)]
    found[path.parent.name] = {
      keystr(k, simple=True, separator="/"): f"{x.shape} {x.dtype} {_sha(x)}"
      for k, x in leaves
    }
  return found


def _sha(data: Any) -> str:
  """Of an array or an image."""
  return hashlib.sha256(data.tobytes()).hexdigest()[:16]


def _batches(tree: Any) -> list[dict[str, list[str]]]:
  """Digests of the arrays of two batches by task, without fields' names.

  The one place that imports the package, whichever tree it stands in. Ids
  below zero are padding and count as 0; an array of no element is left out.
  """
  import jax

  from unifluid_jax import systems
  from unifluid_jax.data import pipeline, text

  config = systems.resolve(tree)
  inputs = systems.build(config).inputs
  tokenizer = text.Tokenizer.load(config.text.tokenizer)
  loader, found = pipeline.make_loader(config, inputs, tokenizer), []
  for _ in range(2):
    batch, digests = next(loader), {}
    for task, fields in batch.items():
      arrays = [x for x in jax.tree.leaves(fields) if x.size]
      ids = [np.maximum(x, 0) if x.dtype.kind == "i" else x for x in arrays]
      name = "t2i" if task == "image" else task
      digests[name] = sorted(_sha(x) for x in ids)
    found.append({k: v for k, v in digests.items() if v})
  loader.close()
  return found


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
  if not isinstance(value, dict | list):
    yield path, repr(value)
    return
  for key, each in (
    value.items() if isinstance(value, dict) else enumerate(value)
  ):
    yield from _flat(each, f"{path}:{key}".removeprefix(":"))


def differences(a: Any, b: Any, exempt: Sequence[str]) -> list[str]:
  """A line per value that differs or that only one of them has."""
  one, other = dict(_flat(a)), dict(_flat(b))
  unlike = {k for k in one.keys() | other if one.get(k) != other.get(k)}
  return [
    f"{key}: {one.get(key, 'missing')} != {other.get(key, 'missing')}"
    for key in sorted(unlike)
    if not any(fnmatch.fnmatchcase(key, glob) for glob in exempt)
  ]


def main() -> None:
  """Records, compares, or prints the batches' digests for the recorder."""
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
  elif args.out:
    found = record(args.names or TRACES)
    Path(args.out).write_text(json.dumps(found, indent=1) + "\n")
  else:
    parser.error("give OUT.json or --compare")


if __name__ == "__main__":
  main()
