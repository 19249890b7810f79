"""What a detector found in GenEval's images: a file of JSON lines.

It grows by one line an image, so that a detector may run anywhere, and goes
on where it was interrupted. First what detected, then every image of the
folder, objects or not:

  {"detector": "what found it"}
  {"image": "00000/samples/00000.png", "objects": [
    {"class": "bench", "score": 0.97, "box": [x0, y0, x1, y1],
     "colour": "red"}, ...]}

with classes as the prompts spell them, boxes in pixels (y down), and a colour
wherever the prompt asks for that class's. Objects at or below a score of 0.3
may be left out. Further settings may stand beside "detector", and `digest_of`
beside "image", so that an image that was drawn anew is noticed.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from unifluid_jax.core import files
from unifluid_jax.evals.metrics.geneval import Detection
from unifluid_jax.evals.published.drawn_images import changed

COLOURS = (
  "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown",
  "black", "white",
)  # fmt: skip


class Found(NamedTuple):
  """What is in one image."""

  objects: Sequence[Detection]
  digest: str = ""  # see `digest_of`; empty where the detector gave none


class Detections(NamedTuple):
  """A file of detections."""

  made_by: Mapping[str, Any]  # "detector" and its settings
  images: Mapping[str, Found]


def digest_of(image: bytes, metadata: Mapping[str, Any]) -> str:
  """Sixteen digits of a file and of what it should show."""
  text = json.dumps(metadata, sort_keys=True)
  return files.digest(image + text.encode())[:16]


def read(path: str) -> Detections:
  """What a detector has written so far.

  A last line that a killed process tore is no line.

  Raises:
    FileNotFoundError: no such file.
    ValueError: not of the format above; names the line.
  """
  if not epath.Path(path).exists():
    raise FileNotFoundError(f"no detections at {path}")
  rows = _rows(path, epath.Path(path).read_text().split("\n"))
  _, made_by = next(rows, (0, None))
  if not isinstance(made_by, dict) or "detector" not in made_by:
    raise ValueError(
      f'{path} holds no detections: the first line must name a "detector"'
    )
  out: dict[str, Found] = {}
  for number, row in rows:
    try:
      name, objects = row["image"], [_detection(x) for x in row["objects"]]
      digest = row.get("digest", "")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise ValueError(
        f"{path}:{number}: expected an image and its objects of class, score, "
        f"box [x0, y0, x1, y1] and colour: {error!r}"
      ) from error
    if name in out:
      raise ValueError(f"{path}:{number}: {name} is there twice")
    out[name] = Found(objects, digest)
  return Detections(made_by, out)


def _rows(path: str, lines: Sequence[str]) -> Iterator[tuple[int, Any]]:
  """Numbers and contents of the lines; a whole one ends in a newline."""
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      yield number, json.loads(line)
    except json.JSONDecodeError as error:
      if 1 < number == len(lines):
        return
      raise ValueError(f"{path}:{number} is no JSON: {error}") from error


def _detection(entry: Any) -> Detection:
  x0, y0, x1, y1 = (float(x) for x in entry["box"])
  score, colour = float(entry["score"]), entry.get("colour")
  if not (x0 <= x1 and y0 <= y1 and 0 <= score <= 1):
    raise ValueError(f"box {entry['box']}, score {score}")
  if colour is not None and colour not in COLOURS:
    raise ValueError(f"colour {colour!r}, known: {', '.join(COLOURS)}")
  return Detection(str(entry["class"]), score, (x0, y0, x1, y1), colour)


def begin(path: str, made_by: Mapping[str, Any]) -> Detections:
  """Makes a file ready to be added to.

  Args:
    path: of the file; made if it is missing.
    made_by: what detects now: "detector" and its settings, as JSON.

  Returns:
    What it holds already.

  Raises:
    ValueError: something else made it; names both.
  """
  path = files.local(path, "detections, which grow,", "--detections")
  found = Detections(made_by, {})
  if epath.Path(path).exists():
    found = read(path)
    other = changed(found.made_by, made_by)
    if other:
      raise ValueError(
        f"{path} was made otherwise: {'; '.join(other)}. Choose another "
        "--detections"
      )
  lines = [_line(made_by), *(_row(*item) for item in found.images.items())]
  files.write(path, "".join(lines))
  return found


def add(path: str, image: str, found: Found) -> None:
  """Adds what was found in an image, by its name below the folder."""
  with epath.Path(path).open("a") as file:
    file.write(_row(image, found))


def part(path: str, process: int | str) -> str:
  """The file of one of several processes, beside the whole one."""
  return f"{path}.part{process}"


def gather(path: str, images: Iterable[str]) -> None:
  """Moves what processes have detected into the whole file.

  Args:
    path: of the file; its parts are removed.
    images: all names, whose order the added lines have.

  Raises:
    ValueError: another detector made a part.
  """
  there, found = read(path), {}
  parts = sorted(epath.Path(path).parent.glob(
    part(epath.Path(path).name, "*")))  # fmt: skip
  for file in parts:
    made = read(str(file))
    if changed(there.made_by, made.made_by):
      raise ValueError(f"{file} was made otherwise than {path}: remove it")
    found |= made.images
  for name in images:
    if name in found and name not in there.images:
      add(path, name, found[name])
  for file in parts:
    file.unlink()


def _row(image: str, found: Found) -> str:
  objects = [
    {"class": d.name, "score": d.score, "box": list(d.box), "colour": d.colour}
    for d in found.objects
  ]
  return _line({"image": image, "digest": found.digest, "objects": objects})


def _line(content: Mapping[str, Any]) -> str:
  return json.dumps(content) + "\n"


def check(
  found: Detections, folder: str, images: Mapping[str, Mapping[str, Any]]
) -> None:
  """Refuses detections of anything but a folder's images.

  Args:
    found: some of the folder's, or all.
    folder: of the images.
    images: metadata by name.

  Raises:
    ValueError: names the image that is missing or another.
  """
  gone = sorted(found.images.keys() - images.keys())
  if gone:
    raise ValueError(
      f"{folder}: detections without image: {gone[0]} and {len(gone) - 1} "
      "more: run the detector on this very folder, with another --detections"
    )
  for name, entry in found.images.items():
    if entry.digest:
      data = (epath.Path(folder) / name).read_bytes()
      if digest_of(data, images[name]) != entry.digest:
        raise ValueError(
          f"{folder}/{name} is not the image that was detected, or it has "
          "another prompt now: detect again, with another --detections"
        )
