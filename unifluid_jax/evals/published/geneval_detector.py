"""GenEval's detections from local weights: objects, masks, colours.

Ghosh et al., GenEval (arXiv 2310.11513): Mask2Former (Swin-S, COCO) finds
objects, CLIP ViT-L/14 names the colour of each, cut out by its mask. The
networks stand behind two protocols; `torch_networks.py` has real ones.

Differs: the benchmark runs mmdetection's weights of the same architecture;
scores of other weights are close, not equal, and results say which ran.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from PIL import Image

from unifluid_jax.core import shards, telemetry
from unifluid_jax.data.images import decode_image, read_file
from unifluid_jax.evals.metrics import geneval
from unifluid_jax.evals.metrics.geneval import Detection
from unifluid_jax.evals.published import geneval_detections, geneval_files
from unifluid_jax.evals.published.geneval_detections import COLOURS, Found

# COCO's 80 classes in their order, three of them as GenEval spells them.
NAMES = tuple(
  "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,"
  "fire hydrant,stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,"
  "elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
  "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,"
  "surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,"
  "apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
  "potted plant,bed,dining table,toilet,tv,laptop,computer mouse,tv remote,"
  "computer keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,"
  "clock,vase,scissors,teddy bear,hair drier,toothbrush".split(",")
)
TEMPLATES = (
  "a photo of a {colour} {name}",
  "a photo of a {colour}-colored {name}",
  "a photo of a {colour} object",
)
_GREY = (0x99, 0x99, 0x99)  # what the mask leaves out
_INSTANCES = 100  # an image, before the threshold
_SAY_EVERY = 50  # images


@runtime_checkable
class Segmenter(Protocol):
  """An instance segmentation network over COCO's classes."""

  name: str

  def logits(self, image: np.ndarray) -> tuple[Any, Any]:
    """[Q, K + 1] of classes, the last one none; [Q, H, W] of masks."""


@runtime_checkable
class Clip(Protocol):
  """A network that maps texts and images to one space."""

  name: str

  def texts(self, texts: Sequence[str]) -> Any:
    """[B, D], of any length."""

  def images(self, images: Sequence[np.ndarray]) -> Any:
    """[B, D] of uint8 images, of any length."""


class Instance(NamedTuple):
  """An object with its mask."""

  detection: Detection
  mask: Any  # bool[H, W]


def instances(
  class_logits: Float[np.ndarray, "Q K"],
  mask_logits: Float[np.ndarray, "Q H W"],
  names: Sequence[str] = NAMES,
) -> list[Instance]:
  """Objects of a mask classification network, as mmdetection reads them.

  The 100 best pairs of query and class; a score is the class's probability
  times the mean probability of the mask within itself; the box is the mask's.
  Overlaps stay (the benchmark's NMS is off).

  Args:
    class_logits: one column a name, then "no object".
    mask_logits: at the image's size.
    names: of the classes.

  Raises:
    ValueError: the network has other classes.
  """
  if class_logits.shape[1] != len(names) + 1:
    raise ValueError(
      f"the detector knows {class_logits.shape[1] - 1} classes, expected "
      f"COCO's {len(names)}: take weights of COCO instance segmentation"
    )
  x = class_logits.astype(np.float64)
  x = np.exp(x - x.max(axis=1, keepdims=True))
  classes = (x / x.sum(axis=1, keepdims=True))[:, :-1]
  best = np.argsort(-classes, axis=None, kind="stable")[:_INSTANCES]
  found = []
  for query, index in zip(*np.unravel_index(best, classes.shape), strict=True):
    # Before its mask's share is known: it only lowers the score.
    if classes[query, index] <= geneval.MIN_SCORE:
      break
    mask = mask_logits[query] > 0
    if not mask.any():
      continue
    inside = mask_logits[query][mask].astype(np.float64)
    score = classes[query, index] * np.mean(1 / (1 + np.exp(-inside)))
    if score > geneval.MIN_SCORE:
      detection = Detection(names[index], float(score), geneval.box_of(mask))
      found.append(Instance(detection, mask))
  return found


def cut_out(
  image: UInt8[np.ndarray, "H W 3"], instance: Instance
) -> UInt8[np.ndarray, "h w 3"]:
  """An object on grey (#999), cropped to its box."""
  pixels = np.where(instance.mask[..., None], image, np.uint8(_GREY))
  box = instance.detection.box
  return np.asarray(Image.fromarray(pixels).crop([round(v) for v in box]))


class ColourNamer:
  """Zero-shot classification of cut-out objects into GenEval's ten colours."""

  def __init__(self, clip: Clip):
    """Keeps the network; the texts of a class are embedded once."""
    self._clip = clip
    self._texts: dict[str, np.ndarray] = {}

  def name(self, name: str, crops: Sequence[np.ndarray]) -> list[str]:
    """The colour of each crop of objects of a class."""
    if not crops:
      return []
    if name not in self._texts:
      self._texts[name] = self._embed(name)
    seen = normalised(self._clip.images(crops))
    return [COLOURS[i] for i in np.argmax(seen @ self._texts[name].T, axis=1)]

  def _embed(self, name: str) -> Float[np.ndarray, "10 D"]:
    """The mean direction of a colour's templates."""
    texts = [
      template.format(colour=colour, name=name)
      for colour in COLOURS
      for template in TEMPLATES
    ]
    each = normalised(self._clip.texts(texts))
    means = each.reshape(len(COLOURS), len(TEMPLATES), -1).mean(axis=1)
    return normalised(means)


def normalised(vectors: Any) -> Float[np.ndarray, "B D"]:
  """Rows of length 1."""
  x = np.asarray(vectors, np.float64)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def detect(
  image: UInt8[np.ndarray, "H W 3"],
  metadata: Mapping[str, Any],
  segmenter: Segmenter,
  colours: ColourNamer,
  names: Sequence[str] = NAMES,
) -> list[Detection]:
  """Everything GenEval's rules need to know of an image.

  Colours are named where the prompt asks: of its classes' best objects.
  """
  found = instances(*segmenter.logits(image), names)
  above = geneval.threshold(metadata["tag"])
  kept = geneval.confident([f.detection for f in found], above)
  named: dict[int, str] = {}
  for clause in metadata.get("include", ()):
    if "color" not in clause:
      continue
    group = [
      next(f for f in found if f.detection is d)
      for d in kept.get(clause["class"], [])[: clause["count"]]
    ]
    crops = [cut_out(image, f) for f in group]
    seen = colours.name(clause["class"], crops)
    named |= {id(f.detection): c for f, c in zip(group, seen, strict=True)}
  every = [f.detection for f in found]
  return [Detection(d.name, d.score, d.box, named.get(id(d))) for d in every]


def detect_folder(
  folder: str,
  path: str,
  segmenter: Segmenter,
  clip: Clip,
  say: Callable[[str], None],
  names: Sequence[str] = NAMES,
) -> None:
  """Detects all images in GenEval's layout that a file has nothing of yet.

  Of several processes each detects every k-th, into a file of its own beside
  `path`; the first one gathers them, at the next start too.

  Args:
    folder: of the images.
    path: of the file, in `geneval_detections.py`'s format; what is found is
      kept there image by image.
    segmenter: finds objects.
    clip: names their colours.
    say: takes progress lines.
    names: classes that the segmenter knows.

  Raises:
    ValueError: no images, a damaged one, a class that the detector does not
      know, or a file that something else made or of other images.
  """
  images = dict(geneval_files.images_below(folder))
  if not images:
    raise ValueError(f"{folder} holds no images in GenEval's layout")
  for name, metadata in images.items():
    clauses = (*metadata.get("include", ()), *metadata.get("exclude", ()))
    for clause in clauses:
      if clause["class"] not in names:
        raise ValueError(
          f"{folder}: {name} is about {clause['class']!r}, which is none of "
          "the detector's classes"
        )
  made_by = _made_by(segmenter, clip)
  if jax.process_index() == 0:
    geneval_detections.begin(path, made_by)
    geneval_detections.gather(path, images)
  shards.wait(f"{path} is begun")
  there = geneval_detections.read(path)
  geneval_detections.check(there, folder, images)
  missing = [name for name in images if name not in there.images]
  say(f"{path}: {len(there.images)} of {len(images)} images are detected")
  whole = path
  if jax.process_count() > 1:
    missing = [missing[i] for i in shards.share(len(missing))]
    path = geneval_detections.part(path, jax.process_index())
    geneval_detections.begin(path, made_by)
  colours = ColourNamer(clip)
  progress = telemetry.Progress("detected", 0, len(missing))
  for count, name in enumerate(missing, 1):
    try:
      data = read_file(epath.Path(folder) / name)
      image = decode_image(data)
    except ValueError as error:
      raise ValueError(f"{folder}/{name}: {error}; draw it again") from error
    objects = detect(image, images[name], segmenter, colours, names)
    digest = geneval_detections.digest_of(data, images[name])
    geneval_detections.add(path, name, Found(objects, digest))
    if count % _SAY_EVERY == 1 or count == len(missing):
      say(progress.line(count)[0])
  shards.wait(f"{whole} is complete")
  if jax.process_index() == 0:
    geneval_detections.gather(whole, images)
  shards.wait(f"{whole} is gathered")


def _made_by(segmenter: Segmenter, clip: Clip) -> dict[str, Any]:
  """All that decides what is found."""
  return {
    "detector": f"{segmenter.name}; colours by {clip.name}",
    "min_score": geneval.MIN_SCORE,
    "min_score_counting": geneval.MIN_SCORE_COUNTING,
    "max_per_class": geneval.MAX_PER_CLASS,
    "max_instances": _INSTANCES,
  }
