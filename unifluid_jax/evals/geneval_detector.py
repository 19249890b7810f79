"""GenEval's detections from local weights: objects, masks, colours.

Ghosh et al., GenEval (arXiv 2310.11513): Mask2Former (Swin-S, COCO) finds
objects, CLIP ViT-L/14 names the colour of each, cut out by its mask. The
networks stand behind two protocols; `torch_networks.py` has real ones.

Differs: the benchmark runs mmdetection's weights of the same architecture;
scores of other weights are close, not equal, and results say which ran.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from unifluid_jax import telemetry
from unifluid_jax.data import transforms
from unifluid_jax.evals import geneval, geneval_files
from unifluid_jax.evals.geneval import Detection
from unifluid_jax.evals.geneval_files import COLOURS, Detections

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
      detection = Detection(names[index], float(score), box_of(mask))
      found.append(Instance(detection, mask))
  return found


def box_of(mask: Bool[np.ndarray, "H W"]) -> tuple[float, float, float, float]:
  """x0, y0, x1, y1 of a mask that is not empty; the ends are exclusive."""
  ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
  return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)


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
  above = geneval_files.threshold(metadata["tag"])
  kept = geneval_files.confident([f.detection for f in found], above)
  named: dict[int, str] = {}
  for clause in metadata["include"]:
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
  segmenter: Segmenter,
  clip: Clip,
  say: Callable[[str], None],
  names: Sequence[str] = NAMES,
) -> Detections:
  """Detections of all images in GenEval's layout.

  Raises:
    ValueError: a damaged image, or a class that the detector does not know.
  """
  images = list(geneval_files.images_below(folder))
  for name, metadata in images:
    for clause in (*metadata["include"], *metadata.get("exclude", ())):
      if clause["class"] not in names:
        raise ValueError(
          f"{folder}: {name} is about {clause['class']!r}, which is none of "
          "the detector's classes"
        )
  colours, out = ColourNamer(clip), {}
  progress = telemetry.Progress("detected", 0, len(images))
  for count, (name, metadata) in enumerate(images, 1):
    try:
      data = (epath.Path(folder) / name).read_bytes()
      image = transforms.decode_image(data)
    except (OSError, ValueError) as error:
      raise ValueError(f"{folder}/{name}: {error}; draw it again") from error
    out[name] = detect(image, metadata, segmenter, colours, names)
    if count % _SAY_EVERY == 1 or count == len(images):
      say(progress.line(count)[0])
  return Detections(f"{segmenter.name}; colours by {clip.name}", out)
