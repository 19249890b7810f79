"""What `generate` is asked for, checked before a model is loaded.

Every refusal is a ValueError or OSError of one line that names the flag.
"""

import dataclasses
import errno
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unifluid_jax import api, arguments
from unifluid_jax.core import files
from unifluid_jax.core.types import SystemSpec

# Suffixes of files that can be written → names of PIL's formats.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_MAX_IMAGES = 100_000


@dataclasses.dataclass(frozen=True)
class Flags:
  """The flags of `generate` as they were given; None where they were not."""

  prompts: Sequence[str] = ()
  prompts_file: str | None = None
  image: str | None = None
  question: str | None = None
  edit: str | None = None
  given: str | None = None
  redraw: Sequence[str] | None = None
  out: str | None = None
  seed: int = 0
  samples: int = 1
  step: int | None = None
  sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Request:
  """What is to be done: an image to look at or edit, prompts to draw."""

  prompts: list[str]  # one per image, samples repeated
  image: np.ndarray | None  # uint8 [H, W, 3]
  question: str | None
  edit: str | None
  given: np.ndarray | None  # uint8 [H, W, 3] of which a part is drawn again
  redraw: tuple[float, ...] | None  # that part: left, top, right, bottom
  names: list[str]  # files of the images that are made
  listing: str | None  # file that lists the prompts of a directory
  sampling: dict[str, Any]  # options that were given


def check(given: Flags, spec: Callable[[], SystemSpec]) -> Request:
  """Reads the files that are named and refuses what cannot be done.

  Args:
    given: the flags.
    spec: finds the run's system, which knows its sampling options.

  Raises:
    ValueError: values out of range, flags that exclude one another, files
      without the wanted content.
    OSError: files that cannot be read or written.
  """
  _check_numbers(given)
  prompts = _prompts(given)
  if not prompts and given.image is None:
    raise ValueError("nothing to do: give --prompt, --prompts or --image")
  _check_sampling(given, spec)
  _check_texts(given, prompts)
  box = _box(given, prompts)
  image, kept = (
    None if path is None else api.as_array(path)
    for path in (given.image, given.given)
  )
  if given.samples > 1 and not prompts:
    raise ValueError(
      f"--samples={given.samples} is of prompts: give --prompt, or leave it out"
    )
  prompts = [p for p in prompts for _ in range(given.samples)]
  count = 1 if given.edit else len(prompts)
  unused = ["out"] if given.out is not None else []
  unused += _given(given.sampling)
  if not count and unused:
    raise ValueError(
      f"--{unused[0]}: no image is made; give --prompt or --edit"
    )
  try:
    arguments.check_seeds(given.seed, count)
  except ValueError as error:
    raise ValueError(f"--{error}") from error
  names, listing = _places(given.out, count) if count else ([], None)
  sampling = _given(given.sampling)
  return Request(
    prompts, image, given.question, given.edit, kept, box, names, listing,
    sampling,
  )  # fmt: skip


def _check_numbers(given: Flags) -> None:
  if not 1 <= given.samples <= _MAX_IMAGES:
    raise ValueError(f"--samples={given.samples}: choose 1 to {_MAX_IMAGES}")
  if given.step is not None and given.step < 0:
    raise ValueError(f"--step={given.step}: steps are counted from 0")


def _check_sampling(given: Flags, spec: Callable[[], SystemSpec]) -> None:
  options = _given(given.sampling)
  if not options:
    return
  found = spec()
  try:
    arguments.check_sampling(options, found.sampling, found.ranges)
  except ValueError as error:
    # What is wrong with an option begins with its name; of one that the system
    # lacks that is said in a sentence.
    known = options.keys() <= found.sampling.__dataclass_fields__.keys()
    raise ValueError(f"{'--' * known}{error}") from error


def size(given: Sequence[str] | None) -> tuple[int, ...] | None:
  """What --size names: height and width.

  Raises:
    ValueError: anything else.
  """
  if given is None:
    return None
  try:
    return tuple(int(side) for side in given)
  except ValueError as error:
    raise ValueError(
      f"--size={','.join(given)}: give height,width in pixels"
    ) from error


def _box(given: Flags, prompts: Sequence[str]) -> tuple[float, ...] | None:
  """What --redraw names."""
  if (given.given is None) != (given.redraw is None):
    raise ValueError("--given and --redraw belong together: give both")
  if given.redraw is None:
    return None
  if not prompts:
    raise ValueError("--redraw needs --prompt: what is drawn there")
  try:
    box = tuple(float(x) for x in given.redraw)
  except ValueError:
    box = ()
  if len(box) != 4 or not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
    raise ValueError(
      f"--redraw={','.join(given.redraw)}: give left,top,right,bottom in "
      "pixels, left < right and top < bottom"
    )
  return box


def _given(sampling: Mapping[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in sampling.items() if v is not None}


def _prompts(given: Flags) -> list[str]:
  prompts = list(given.prompts)
  if given.prompts_file is None:
    return prompts
  try:
    files.check_regular(given.prompts_file)
    content = files.path(given.prompts_file).read_bytes()
    text = content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"--prompts={given.prompts_file} is not UTF-8 (byte {error.start}): "
      "convert it"
    ) from error
  lines = [line for line in text.splitlines() if line.strip()]
  if not lines:
    raise ValueError(f"--prompts={given.prompts_file} holds no prompt")
  return prompts + lines


def _check_texts(given: Flags, prompts: Sequence[str]) -> None:
  for flag, text in [
    *(("prompt", p) for p in prompts),
    ("question", given.question),
    ("edit", given.edit),
  ]:
    if text is None:
      continue
    try:
      arguments.check_text(text)
    except ValueError as error:
      raise ValueError(f"--{flag}: {error}") from error
  if given.image is None:
    for flag in ("edit", "question"):
      if getattr(given, flag) is not None:
        raise ValueError(f"--{flag} needs --image=FILE")
  if given.edit and given.question:
    raise ValueError("--edit and --question: one at a time")
  if given.edit and prompts:
    raise ValueError("--edit and --prompt: one at a time")


def _places(out: str | None, count: int) -> tuple[list[str], str | None]:
  """Files for `count` images, and one that lists the prompts of a directory.

  Only a file that --out names is ever replaced.
  """
  if out is None:
    if count > 1:
      raise ValueError(f"{count} images need a directory: --out=DIR")
    numbered = (f"out-{i}.png" for i in itertools.count(1))
    names = itertools.chain(["out.png"], numbered)
    out = next(n for n in names if not files.path(n).exists())
  if not out or "\0" in out:
    raise ValueError(f"--out={out!r} is no path")
  path = files.path(out)
  suffix = path.suffix.lower()
  if count > 1 and suffix in FORMATS:
    raise ValueError(
      f"{count} images need a directory: --out={path.with_suffix('')}"
    )
  if count == 1 and suffix and not path.is_dir():
    if suffix not in FORMATS:
      raise ValueError(
        f"--out={out}: cannot write {suffix}; use {', '.join(FORMATS)}"
      )
    _check_writable(out)
    return [out], None
  if path.exists() and not path.is_dir():
    raise _os_error(errno.ENOTDIR, out)
  names = [str(path / f"{i:05d}.png") for i in range(count)]
  listing = str(path / "prompts.txt")
  for name in (*names, listing):
    if files.path(name).exists():
      raise ValueError(f"{name} exists: choose another --out")
  _check_writable(names[0])
  return names, listing


def _os_error(number: int, name: Any) -> OSError:
  return OSError(number, os.strerror(number), os.fspath(name))


def _check_writable(name: str) -> None:
  """Whether a file can be made here, as far as permissions tell."""
  if files.is_remote(name):
    return
  folder = files.path(name).absolute().parent
  while not folder.exists():
    folder = folder.parent
  if not folder.is_dir():
    raise _os_error(errno.ENOTDIR, folder)
  if not os.access(folder, os.W_OK | os.X_OK):
    raise _os_error(errno.EACCES, folder)
