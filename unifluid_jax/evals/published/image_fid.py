"""Fréchet Inception distance between sets of image files.

A number means little without how it came about, so statistics carry a record
of their set, convention, crop and network, and only like is compared with
like. Every process measures every k-th image; moments are merged exactly.
"""

import dataclasses
import functools
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from unifluid_jax.core import files, shards, telemetry
from unifluid_jax.evals.metrics import fid
from unifluid_jax.evals.metrics.fid import Statistics
from unifluid_jax.evals.published import image_sets
from unifluid_jax.evals.published.drawn_images import changed
from unifluid_jax.evals.published.image_sets import ImageSet

_CROP_RULE = "centre square by box halving, then bicubic (ADM)"


@runtime_checkable
class Features(Protocol):
  """A network over pixels; `inception_net.InceptionNet` is the published."""

  convention: str
  weights: str
  digest: str
  width: int
  rows: int

  def features(self, images: Sequence[np.ndarray]) -> Any:
    """[B, width] of at most `rows` uint8 images."""


@dataclasses.dataclass(frozen=True)
class Record:
  """What statistics were made of.

  Attributes:
    source: the set's path.
    kind: what it is: "all images", or which of them.
    count: images measured.
    images: which ones, see `image_sets.fingerprint`.
    convention: of the network's input.
    crop: side in pixels of the central squares; 0: whole images.
    crop_rule: how they were cut.
    weights: path of the network's.
    digest: of the weights' values.
    skipped: images that could not be read and are left out.
  """

  source: str
  kind: str
  count: int
  images: str
  convention: str
  crop: int
  crop_rule: str
  weights: str
  digest: str
  skipped: int = 0


class Measured(NamedTuple):
  """Statistics and their record."""

  statistics: Statistics
  record: Record


def measure(
  net: Features,
  images: ImageSet,
  crop: int,
  say: Callable[[str], None],
  kind: str = "all images",
) -> Measured:
  """Statistics of a set, over all devices and processes.

  Args:
    net: the network.
    images: the set; the same in all processes.
    crop: see `Record`.
    say: takes progress lines.
    kind: see `Record`.

  Raises:
    ValueError: no image can be read, or features are not finite.
  """
  total = len(images.names)
  mine = share(total, jax.process_index(), jax.process_count())
  part, done = fid.empty(net.width), 0
  bad: list[str] = []
  progress = telemetry.Progress(f"features of {images.source}", 0, len(mine))
  for batch in image_sets.batches(images, mine, net.rows, crop, bad):
    pixels = [image for _, image in batch]
    part = fid.merge(part, fid.statistics(net.features(pixels)))
    done += len(batch)
    progress.report(done, say)
  whole = merge_all(_exchange(part))
  if not whole.count:
    raise ValueError(
      f"{images.source}: none of {total} images can be read: {bad[:1]}"
    )
  if whole.count < total:
    say(f"{images.source}: {total - whole.count} of {total} left out")
  rule = _CROP_RULE if crop else "none"
  record = Record(
    images.source, kind, whole.count, image_sets.fingerprint(images),
    net.convention, crop, rule, net.weights, net.digest, total - whole.count,
  )  # fmt: skip
  return Measured(whole, record)


def share(total: int, index: int, count: int) -> range:
  """Images that process `index` of `count` measures: every `count`-th."""
  return range(index, total, count)


def merge_all(parts: Sequence[Statistics]) -> Statistics:
  """Statistics of the union; the order of the parts is the processes'."""
  return functools.reduce(fid.merge, parts)


def pack(s: Statistics) -> np.ndarray:
  """Statistics as u32 words: JAX would gather float64 as float32."""
  flat = np.concatenate([[float(s.count)], s.mean, s.scatter.ravel()])
  return flat.astype(np.float64).view(np.uint32)


def unpack(words: np.ndarray) -> Statistics:
  """The inverse of `pack`, bit by bit."""
  flat = np.ascontiguousarray(words).view(np.float64)
  width = (int(np.sqrt(4 * len(flat) - 3)) - 1) // 2  # 1 + n + n^2 numbers
  mean, scatter = flat[1 : 1 + width], flat[1 + width :]
  return Statistics(int(flat[0]), mean, scatter.reshape(width, width))


def _exchange(part: Statistics) -> list[Statistics]:
  """Every process's part, in every process."""
  if jax.process_count() == 1:
    return [part]
  shards.wait("all features are measured")  # longer than a collective would
  rows = np.asarray(multihost_utils.process_allgather(pack(part)))
  return [unpack(row) for row in rows]


def save(path: str, measured: Measured) -> None:
  """Writes statistics and their record to an .npz, from process 0."""
  if jax.process_index():
    return
  s = measured.statistics
  files.write_npz(
    path,
    count=s.count,
    mean=s.mean,
    scatter=s.scatter,
    record=json.dumps(dataclasses.asdict(measured.record)),
  )


def load(path: str, net: Features, crop: int) -> Measured:
  """Reads what `save` wrote, if it can be compared with images of now.

  Raises:
    FileNotFoundError: nothing there.
    ValueError: no such statistics, or made in another way.
  """
  if not epath.Path(path).exists():
    raise FileNotFoundError(f"no reference statistics at {path}")
  try:
    with epath.Path(path).open("rb") as f:
      data = np.load(f, allow_pickle=False)
      record = Record(**json.loads(str(data["record"])))
      found = Statistics(int(data["count"]), data["mean"], data["scatter"])
  except (
    KeyError, ValueError, TypeError, OSError, zipfile.BadZipFile
  ) as error:  # fmt: skip
    raise ValueError(
      f"{path} holds no statistics with a record of how they were made "
      f"({error}): measure the reference again with --save_reference"
    ) from error
  now = {"convention": net.convention, "crop": crop, "digest": net.digest}
  wrong = changed({key: getattr(record, key) for key in now}, now)
  if wrong:
    raise ValueError(
      f"{path} cannot be compared: it was made with {'; '.join(wrong)}. Use "
      "the same, or measure the reference again with another --save_reference"
    )
  return Measured(found, record)


def kept(
  net: Features,
  images: ImageSet,
  crop: int,
  path: str,
  say: Callable[[str], None],
  kind: str = "all images",
) -> Measured:
  """Statistics of a set that are measured once, then read.

  Args:
    net: the network.
    images: the set.
    crop: see `Record`.
    path: .npz that keeps them; empty: they are measured at every call.
    say: takes progress lines.
    kind: see `Record`.

  Raises:
    ValueError: the file holds another set, or was made in another way.
  """
  if not path:
    return measure(net, images, crop, say, kind)
  if not epath.Path(path).exists():
    found = measure(net, images, crop, say, kind)
    save(path, found)
    say(f"reference statistics: {path}")
    return found
  found = load(path, net, crop)
  now = {
    "kind": kind,
    "count": len(images.names),
    "images": image_sets.fingerprint(images),
  }
  then = {key: getattr(found.record, key) for key in now}
  then["count"] += found.record.skipped
  other = changed(then, now)
  if other:
    raise ValueError(
      f"{path} holds another set than {images.source}: {'; '.join(other)}. "
      "Choose another --save_reference"
    )
  say(f"reference statistics: {path}, measured before")
  return found


def compare(real: Measured, generated: Measured) -> dict[str, Any]:
  """The distance with everything its reader has to know, as JSON."""
  found = fid.distance(real.statistics, generated.statistics)
  return {
    "fid": found.value,
    "convention": generated.record.convention,
    "generated": dataclasses.asdict(generated.record),
    "reference": dataclasses.asdict(real.record),
    "warning": found.warning,
  }


def line(name: str, result: Mapping[str, Any]) -> str:
  """A result of `compare` in one line."""
  made, real = result["generated"], result["reference"]
  crop = f"crop {made['crop']}" if made["crop"] else "whole images"
  text = (
    f"{name} {result['fid']:.4f}  ({result['convention']}, {crop}; "
    f"{made['count']} generated: {made['source']}; {real['count']} reference: "
    f"{real['source']}, {real['kind']})"
  )
  skipped = made.get("skipped", 0) + real.get("skipped", 0)
  text += f"  {skipped} unreadable images left out" if skipped else ""
  return text + (f"  {result['warning']}" if result["warning"] else "")
