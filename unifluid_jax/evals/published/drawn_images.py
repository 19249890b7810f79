"""Images drawn from prompts into a folder: one PNG a prompt, resumable.

`drawn.json` beside them says what drew them and from which prompts; a folder
that something else drew is never added to. PNG, because distances see JPEG.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from etils import epath

from unifluid_jax.core import files, shards, telemetry
from unifluid_jax.data.images import encode_image

MANIFEST = "drawn.json"


@runtime_checkable
class Painter(Protocol):
  """What draws: `api.Model`."""

  def images(self, prompts: Sequence[str], seeds: Sequence[int]) -> Any:
    """uint8 [n, H, W, 3]; each depends on its prompt and seed alone."""


class Drawing(NamedTuple):
  """One image to draw."""

  file: str  # below the folder
  prompt: str
  seed: int


def seed_of(*names: Any) -> int:
  """A seed that depends on names alone: 32 bits of their digest.

  Adding, leaving out or reordering others changes nothing.
  """
  text = "/".join(str(name) for name in names)
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def draw(
  painter: Painter,
  drawings: Sequence[Drawing],
  folder: str,
  rows: int,
  made_by: Mapping[str, Any],
  say: Callable[[str], None],
) -> None:
  """Draws what is not there yet; returns when all processes are done.

  Args:
    painter: the model.
    drawings: the same in all processes; each draws every k-th.
    folder: of the images; made if it is missing.
    rows: images that are drawn at once.
    made_by: what draws, as JSON: run, step, its state, sampling options.
    say: takes progress lines.

  Raises:
    ValueError: the folder holds images of something else.
  """
  root = epath.Path(folder)
  _claim(root, drawings, dict(made_by))
  there = _existing(root, [d.file for d in drawings])
  share = drawings[jax.process_index() :: jax.process_count()]
  missing = [d for d in share if d.file not in there]
  say(
    f"{folder}: {len(there)} of {len(drawings)} images are there, "
    f"{len(missing)} to draw here"
  )
  progress = telemetry.Progress("drawn", 0, len(missing))
  for start in range(0, len(missing), rows):
    part = missing[start : start + rows]
    images = painter.images([d.prompt for d in part], [d.seed for d in part])
    for drawing, image in zip(part, images, strict=True):
      files.write(root / drawing.file, encode_image(image))
    progress.report(start + len(part), say)
  shards.wait(f"{folder} is drawn")  # longer than a collective would


def read_manifest(folder: str) -> dict[str, Any]:
  """What `draw` noted: {"by": ..., "images": {file: [prompt, seed]}}.

  Raises:
    FileNotFoundError: images of this folder were not drawn here.
  """
  path = epath.Path(folder) / MANIFEST
  if not path.exists():
    raise FileNotFoundError(
      f"no {MANIFEST} in {folder}: it must hold images drawn by "
      "python -m unifluid_jax.evaluate --metrics=coco_fid, mjhq_fid or "
      "geneval_draw"
    )
  return json.loads(path.read_text())


def home(workdir: str) -> str:
  """A run's folder as manifests name it: one name, whatever leads there."""
  if files.is_remote(workdir):
    return workdir.rstrip("/")
  return os.path.realpath(workdir)


def drawn_by(folder: str) -> dict[str, Any]:
  """What drew a folder's images; {} where that is not known."""
  there = (epath.Path(folder) / MANIFEST).exists()
  return read_manifest(folder)["by"] if there else {}


def check_complete(folder: str) -> None:
  """Refuses to score a folder that `draw` has begun and not ended.

  Raises:
    ValueError: names an image that its manifest lists and it lacks.
  """
  root = epath.Path(folder)
  if not (root / MANIFEST).exists():
    return
  listed = read_manifest(folder)["images"]
  missing = sorted(listed.keys() - _existing(root, listed))
  if missing:
    raise ValueError(
      f"{folder}: {len(missing)} of {len(listed)} images are not drawn, such "
      f"as {missing[0]}: run the command that draws them again"
    )


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Entries that differ, each with both values: "step 3, now 4"."""
  return [
    f"{key} {old.get(key)!r}, now {new.get(key)!r}"
    for key in sorted({*old, *new})
    if old.get(key) != new.get(key)
  ]


def _claim(
  root: epath.Path, drawings: Sequence[Drawing], made_by: dict[str, Any]
) -> None:
  """Notes who draws here, or checks that it is the same."""
  wanted = {d.file: [d.prompt, d.seed] for d in drawings}
  made_by = json.loads(json.dumps(made_by))
  images = {}
  if (root / MANIFEST).exists():
    found = read_manifest(os.fspath(root))
    images = found["images"]
    if "state" not in found["by"]:  # of a version that did not note it
      made_by.pop("state", None)
    other = changed(found["by"], made_by) + [
      f"{file} from {images[file]}, now {wanted[file]}"
      for file in wanted
      if file in images and images[file] != wanted[file]
    ]
    if other:
      raise ValueError(
        f"{root} holds images that were drawn otherwise: "
        f"{'; '.join(other[:3])}. Choose another --images"
      )
  if jax.process_index() == 0 and not wanted.keys() <= images.keys():
    text = json.dumps({"by": made_by, "images": images | wanted})
    files.write(root / MANIFEST, text)


def _existing(root: epath.Path, files: Iterable[str]) -> set[str]:
  """Those of the files that are there; a folder is listed once."""
  files = set(files)
  parents = {os.path.dirname(file) for file in files}
  found = {
    os.path.join(parent, file.name)
    for parent in parents
    if (root / parent).exists()
    for file in (root / parent).iterdir()
  }
  return found & files
