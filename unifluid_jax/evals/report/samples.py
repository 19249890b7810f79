"""The examples of every evaluated checkpoint, kept in a run's workdir.

samples/<step>.jsonl, an example a line, its images inside it: what a report
needs to show earlier steps and other runs, whose checkpoints may be gone.
"""

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from unifluid_jax.core import files
from unifluid_jax.data.images import decode_image, encode_image
from unifluid_jax.evals.bench import Bench, Outcome, Shown, Subject
from unifluid_jax.evals.report.contact_sheet import enlarged

FOLDER = "samples"
_SIDE = 256  # larger images are reduced to it
_EXACT = 64  # up to this side nothing is lost; photographs are larger
_QUALITY = 90
_IMAGES = ("image", "source", "target")
_DRAWN = 8


def draw(subject: Subject, bench: Bench) -> Outcome:
  """Draws the first prompts of the evaluation split, to look at; no score.

  Raises:
    ValueError: the split has no texts.
  """
  split = bench.splits[0]
  records = [r for r in bench.records(split) if r.prompts or r.captions]
  if not records:
    raise ValueError(
      f"config.data.eval.{split} has no texts to draw: leave 'samples' out of "
      "config.eval.metrics"
    )
  prompts = [(r.prompts or r.captions)[0] for r in records[:_DRAWN]]
  images = subject.images(prompts, range(len(prompts)))
  shown = [
    Shown("generated", image, prompt, task=split, seed=seed)
    for seed, (image, prompt) in enumerate(zip(images, prompts, strict=True))
  ]
  return Outcome({}, {}, {}, shown)


def write(
  workdir: str, step: int, shown: Sequence[Shown], *, add: bool = False
) -> None:
  """Keeps the examples of a step, in place of what is there of it.

  Args:
    workdir: of the run.
    step: of the checkpoint.
    shown: examples; their images may be of different sizes.
    add: keep what is there too.

  Raises:
    ValueError: an image is not u8[H, W, 3].
  """
  lines = []
  for s in shown:
    row = s._asdict()
    for key in _IMAGES:
      if row[key] is not None:
        code = base64.b64encode(encoded(row[key]))
        row[key] = code.decode("ascii")
    lines.append(json.dumps(row) + "\n")
  path = _file(workdir, step)
  before = path.read_text() if add and path.exists() else ""
  files.write(path, before + "".join(lines))


def read(workdir: str, step: int) -> list[Shown]:
  """The examples of a step; none if none were kept.

  Raises:
    ValueError: the file is not what `write` writes; names it.
  """
  path = _file(workdir, step)
  if not path.exists():
    return []
  try:
    return [_example(json.loads(x)) for x in path.read_text().splitlines()]
  except (ValueError, KeyError, TypeError, OSError) as error:
    raise ValueError(
      f"{path} holds no examples of an evaluation ({error!r}): delete it, and "
      "evaluate the step again"
    ) from error


def steps(workdir: str) -> list[int]:
  """Steps whose examples are kept, ascending."""
  found = (epath.Path(workdir) / FOLDER).glob("*.jsonl")
  return sorted(int(f.stem) for f in found if f.stem.isdigit())


def encoded(image: Any) -> bytes:
  """A file of an image: exact if it is small, else a JPEG of 256 a side.

  Args:
    image: u8[H, W, 3].

  Raises:
    ValueError: something else.
  """
  picture = enlarged(image, 1)
  if max(picture.size) <= _EXACT:
    return encode_image(picture, optimize=True)
  picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
  return encode_image(picture, "JPEG", quality=_QUALITY, subsampling=0)


def decoded(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
  """The pixels of `encoded`."""
  return decode_image(data)


def _file(workdir: str, step: int) -> epath.Path:
  return epath.Path(workdir) / FOLDER / f"{step}.jsonl"


def _example(row: dict[str, Any]) -> Shown:
  for key in _IMAGES:
    if row[key] is not None:
      row[key] = decoded(base64.b64decode(row[key]))
  return Shown(**row | {"references": tuple(row["references"])})
