"""Networks of published metrics that run in PyTorch, from local weights.

The extra `geneval` brings torch and transformers; nothing else needs them,
and nothing is downloaded.
"""

import hashlib
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float32, UInt8
from PIL import Image

from unifluid_jax.data import transforms
from unifluid_jax.models import clip_vit

# Mask2Former's test pipeline in mmdetection: sides, normalisation, padding.
_SHORT, _LONG, _MULTIPLE = 800, 1333, 32
_MEAN = np.float32([123.675, 116.28, 103.53])
_STD = np.float32([58.395, 57.12, 57.375])
_BATCH = 16


class MissingExtra(ValueError):
  """A package that an extra would bring is not installed."""


def needed(name: str) -> Any:
  """Imports a package of the extra `geneval`.

  Raises:
    MissingExtra: it is not installed; says how to.
  """
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise MissingExtra(
      f"this metric needs {name}: pip install 'unifluid_jax[geneval]'"
    ) from error


def device_of(torch: Any, name: str) -> str:
  """The named device; "" is a GPU if there is one."""
  return name or ("cuda" if torch.cuda.is_available() else "cpu")


class Mask2Former:
  """Instance segmentation by a Mask2Former in Hugging Face's format.

  Differs: images that shrink are filtered; OpenCV's bilinear resize, which
  the benchmark runs, does not. Generated images are mostly enlarged.
  """

  def __init__(self, path: str, device: str = ""):
    """Loads weights.

    Args:
      path: directory of config.json and weights.
      device: of torch; "" is a GPU if there is one.

    Raises:
      MissingExtra: torch or transformers is not installed.
      FileNotFoundError: no such directory.
    """
    self._torch, transformers = needed("torch"), needed("transformers")
    check_directory(path)
    kind = transformers.Mask2FormerForUniversalSegmentation
    self._device = device_of(self._torch, device)
    network = kind.from_pretrained(path, local_files_only=True)
    self._net = network.eval().to(self._device)
    self.name = f"Mask2Former {path} ({digest_of(network)})"

  def logits(
    self, image: UInt8[np.ndarray, "H W 3"]
  ) -> tuple[Float32[np.ndarray, "Q K"], Float32[np.ndarray, "Q h w"]]:
    """Class logits, and mask logits at the image's size."""
    torch, (height, width) = self._torch, image.shape[:2]
    pixels, inner = prepared(image)
    with torch.no_grad():
      out = self._net(
        pixel_values=torch.from_numpy(pixels[None]).to(self._device)
      )
      masks = out.masks_queries_logits
      for size, crop in ((pixels.shape[1:], inner), ((height, width), None)):
        masks = torch.nn.functional.interpolate(
          masks, size=tuple(size), mode="bilinear", align_corners=False
        )
        if crop:
          masks = masks[..., : crop[0], : crop[1]]
    classes = out.class_queries_logits[0]
    return classes.float().cpu().numpy(), masks[0].float().cpu().numpy()


def prepared(
  image: UInt8[np.ndarray, "H W 3"],
) -> tuple[Float32[np.ndarray, "3 h w"], tuple[int, int]]:
  """The detector's input, and the part of it that is image.

  The shorter side becomes 800 pixels unless the longer one would exceed 1333;
  both are filled up with zeros to multiples of 32.
  """
  height, width = image.shape[:2]
  scale = min(_SHORT / min(height, width), _LONG / max(height, width))
  h, w = int(height * scale + 0.5), int(width * scale + 0.5)
  resized = Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR)
  x = (np.asarray(resized, np.float32) - _MEAN) / _STD
  x = np.pad(x, ((0, -h % _MULTIPLE), (0, -w % _MULTIPLE), (0, 0)))
  return np.ascontiguousarray(x.transpose(2, 0, 1)), (h, w)


class HfClip:
  """CLIP in Hugging Face's format: both towers with their projections."""

  def __init__(self, path: str, device: str = ""):
    """Loads weights and the tokenizer beside them.

    Args:
      path: directory of config.json, weights and tokenizer files.
      device: of torch; "" is a GPU if there is one.

    Raises:
      MissingExtra: torch or transformers is not installed.
      FileNotFoundError: no such directory.
    """
    self._torch, transformers = needed("torch"), needed("transformers")
    check_directory(path)
    self._device = device_of(self._torch, device)
    network = transformers.CLIPModel.from_pretrained(
      path, local_files_only=True
    )
    self._net = network.eval().to(self._device)
    self._tokenize = transformers.CLIPTokenizer.from_pretrained(
      path, local_files_only=True
    )
    self.name = f"CLIP {path} ({digest_of(network)})"

  def texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "B D"]:
    """Embeddings of texts; what exceeds the context is cut off."""
    length = self._net.config.text_config.max_position_embeddings

    def embed(part):
      tokens = self._tokenize(
        part,
        padding="max_length",
        truncation=True,
        max_length=length,
        return_tensors="pt",
      ).to(self._device)
      pooled = self._net.text_model(**tokens).pooler_output
      return self._net.text_projection(pooled)

    return self._in_batches(embed, list(texts))

  def images(self, images: Sequence[np.ndarray]) -> Float32[np.ndarray, "B D"]:
    """Embeddings of uint8 RGB images."""
    size = self._net.config.vision_config.image_size

    def embed(part):
      pixels = np.stack([clip_pixels(image, size) for image in part])
      x = self._torch.from_numpy(pixels).to(self._device)
      pooled = self._net.vision_model(pixel_values=x).pooler_output
      return self._net.visual_projection(pooled)

    return self._in_batches(embed, list(images))

  def _in_batches(self, embed: Any, items: list) -> np.ndarray:
    parts = []
    with self._torch.no_grad():
      for start in range(0, len(items), _BATCH):
        out = embed(items[start : start + _BATCH])
        parts.append(out.float().cpu().numpy())
    return np.concatenate(parts)


def clip_pixels(
  image: UInt8[np.ndarray, "H W 3"], size: int
) -> Float32[np.ndarray, "3 S S"]:
  """CLIP's input: bicubic to the shorter side, centre crop, normalised."""
  image = transforms.shortened(image)
  height, width = image.shape[:2]
  short = min(height, width)
  w, h = int(size * width / short), int(size * height / short)
  picture = Image.fromarray(image).resize((w, h), Image.Resampling.BICUBIC)
  left, top = round((w - size) / 2), round((h - size) / 2)
  picture = picture.crop((left, top, left + size, top + size))
  x = np.asarray(picture, np.float32) / 255
  x = (x - np.float32(clip_vit.MEAN)) / np.float32(clip_vit.STD)
  return np.ascontiguousarray(x.transpose(2, 0, 1))


def digest_of(network: Any) -> str:
  """Sixteen digits of names and float32 values of a torch module's weights."""
  found = hashlib.sha256()
  for name, tensor in sorted(network.state_dict().items()):
    found.update(name.encode())
    found.update(tensor.float().cpu().numpy().tobytes())
  return found.hexdigest()[:16]


def check_directory(path: str) -> None:
  """Refuses what is no local model, before anything looks for it elsewhere.

  Raises:
    FileNotFoundError: no config.json there.
  """
  if not (epath.Path(path) / "config.json").exists():
    raise FileNotFoundError(
      f"no config.json in {path}: expected a local directory in Hugging "
      "Face's format (config.json, model.safetensors, tokenizer files)"
    )
