"""The Python API: a run's directory in, images and answers out."""

import dataclasses
import functools
import numbers
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image

from unifluid_jax import identity, systems
from unifluid_jax.codecs import kl_vae as frozen_vae
from unifluid_jax.core import checkpoint, files, ranges
from unifluid_jax.core.config import MAX_PIXELS, Config, SamplingConfig, resolve
from unifluid_jax.core.types import Prompts
from unifluid_jax.data import text, transforms
from unifluid_jax.data.images import decode_image, read_file
from unifluid_jax.data.records import BadRecord

TOKENIZER = identity.TOKENIZER

# (params, frozen, *arrays [B, ...]) → array [B, ...], made callable on numpy
# arrays with any number of rows.
Mapper = Callable[[Callable[..., Any]], Callable[..., np.ndarray]]


def load(
  workdir: str,
  *,
  step: int | None = None,
  ema: bool | None = None,
  vae_path: str | None = None,
) -> "Model":
  """Loads a trained run.

  Args:
    workdir: of `python -m unifluid_jax.main`.
    step: checkpoint; default the newest.
    ema: averaged weights; default as config.eval.use_ema says.
    vae_path: where the autoencoder lies, of a run that was moved and has no
      copy of it.

  Returns:
    A model that generates, captions, answers and edits.

  Raises:
    checkpoint.CheckpointError: nothing usable there; says why.
    ConfigError: no autoencoder, or not the one the run was trained on.
  """
  step = checkpoint.latest_step(workdir) if step is None else step
  meta = checkpoint.read_meta(workdir, step)
  config = resolve(meta["config"])
  if vae_path is None:
    config = with_own_vae(config, workdir)
  else:
    model = dataclasses.replace(config.model, vae_path=vae_path)
    config = dataclasses.replace(config, model=model)
  if config.system == "vae":
    raise checkpoint.CheckpointError(
      f"{workdir} holds an autoencoder; load the run that was trained on it"
    )
  system = systems.build(config)
  params = read_params(config, system, workdir, step, ema)
  tokenizer = read_tokenizer(config, workdir)
  frozen = system.load_frozen()
  check_frozen(config, workdir, step, frozen)
  return Model(config, system, tokenizer, jitted(params, frozen, 32))


def with_own_vae(config: Config, workdir: str) -> Config:
  """The configuration of a run, with the path of the VAE that lies in it."""
  model = frozen_vae.located(config.model, workdir)
  return dataclasses.replace(config, model=model)


def check_frozen(config: Config, workdir: str, step: int, frozen: Any) -> None:
  """Whether a checkpoint was trained with these frozen weights.

  Raises:
    ConfigError: with another autoencoder.
  """
  codec = frozen_vae.identity(config.model, frozen)
  if not codec:
    return
  meta = checkpoint.read_meta(workdir, step)
  identity.check_codec(meta, codec, config.model.vae_path, workdir)


def read_params(
  config: Config, system: Any, workdir: str, step: int, ema: bool | None
) -> Any:
  """Parameters of a checkpoint, averaged ones where wanted."""
  ema = config.eval.use_ema if ema is None else ema
  like = jax.eval_shape(system.init, jax.random.key(0))
  name = "ema" if ema and config.optim.ema else "params"
  return checkpoint.restore_part(workdir, step, name, like)


def read_tokenizer(config: Config, workdir: str) -> text.Tokenizer:
  """The run's own copy of its tokenizer.

  Raises:
    ValueError: missing or unusable.
  """
  copy = epath.Path(workdir) / TOKENIZER
  return text.Tokenizer.load(str(copy), config.text.special)


def jitted(params: Any, frozen: Any, rows: int) -> Mapper:
  """Runs functions by jax.jit on the default device, `rows` at a time.

  Fewer rows are padded to the next power of two, so that few shapes compile.
  """

  def mapper(function):
    compiled = jax.jit(function)

    def call(*arrays):
      total, parts = len(arrays[0]), []
      for start in range(0, total, rows):
        part = [a[start : start + rows] for a in arrays]
        count = len(part[0])
        size = 1 << (count - 1).bit_length()
        out = compiled(params, frozen, *(pad_rows(a, size) for a in part))
        parts.append(np.asarray(out)[:count])
      return np.concatenate(parts)

    return call

  return mapper


def pad_rows(array: np.ndarray, size: int) -> np.ndarray:
  """Repeats the last row until there are `size`."""
  missing = size - len(array)
  return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


class Model:
  """A trained UniFluid: text to image, image to text, edits."""

  def __init__(
    self, config: Config, system: Any, tokenizer: Any, mapper: Mapper
  ):
    """Binds a system to weights, which the mapper holds."""
    self.config = config
    self.tokenizer = tokenizer
    self._system = system
    self._map = functools.cache(
      lambda name, *options: mapper(getattr(self, name)(*options))
    )

  # ------------------------------------------------------------- for people

  def generate(
    self, prompt: str | Sequence[str], seed: int = 0, **sampling: Any
  ) -> Any:
    """Draws an image of a prompt.

    Args:
      prompt: a text, or several.
      seed: of the first prompt; the next has seed + 1, and so on. An image
        depends on its prompt, its seed and the sampling options alone.
      **sampling: fields of SamplingConfig: cfg, steps, temperature, order.

    Returns:
      A PIL image; a list for a list.

    Raises:
      ValueError: an empty prompt, a seed or an option out of range.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    for each in prompts:
      check_text(each)
    check_seeds(seed, len(prompts))
    if not prompts:
      return []
    seeds = [seed + i for i in range(len(prompts))]
    images = self.images(prompts, seeds, self._sampling(sampling))
    pictures = [Image.fromarray(x) for x in images]
    return pictures[0] if isinstance(prompt, str) else pictures

  def caption(self, image: Any, **sampling: Any) -> str:
    """Describes an image (PIL image, array or path)."""
    return self.answer(image, self.config.data.caption_prefix, **sampling)

  def answer(self, image: Any, question: str, **sampling: Any) -> str:
    """Answers a question about an image (PIL image, array or path)."""
    images = [as_array(image, self.config.data.max_pixels)]
    return self.answers(images, [question], self._sampling(sampling))[0]

  def unknown_words(self, text: str) -> list[str]:
    """Words of a text that the run's tokenizer was not trained on."""
    return self.tokenizer.unknown_words(text)

  def edit(
    self, image: Any, instruction: str, seed: int = 0, **sampling: Any
  ) -> Image.Image:
    """Changes an image as told; needs a run that was trained with edits."""
    check_text(instruction)
    check_seeds(seed, 1)
    options = self._sampling(sampling)
    source = as_array(image, self.config.data.max_pixels)
    out = self.edits([source], [instruction], [seed], options)
    return Image.fromarray(out[0])

  def _sampling(self, changes: dict[str, Any]) -> SamplingConfig:
    check_sampling(changes)
    if changes.get("cfg", 1) != 1 and not self.config.loss.prompt_dropout:
      raise ValueError(
        f"cfg={changes['cfg']} guides away from images without a prompt, which "
        "this run never saw (config.loss.prompt_dropout=0): use cfg=1"
      )
    return dataclasses.replace(self.config.sampling, **changes)

  # -------------------------------------------------------------- in batches

  def images(
    self,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: SamplingConfig | None = None,
    sources: Sequence[np.ndarray] | None = None,
  ) -> np.ndarray:
    """uint8 [n, H, W, 3] for n prompts; `sources` are images to edit."""
    sampling = sampling or self.config.sampling
    length, m = self.config.text.prompt, self.config.model
    rows = np.stack([self.tokenizer.prompt_row(p, length) for p in prompts])
    arrays = [rows, np.asarray(seeds, np.uint32)]
    if sources is not None:
      self._need("edit")
      if sampling.image_cfg != 1 and not self.config.loss.image_dropout:
        raise ValueError(
          f"image_cfg={sampling.image_cfg} guides away from edits without a "
          "source, which this run never saw (config.loss.image_dropout=0): "
          "use image_cfg=1"
        )
      arrays.append(_pixels(sources, m.vit.image_size))
      arrays.append(_crops(sources, m.image_size))
    return to_uint8(self._map("_generate", sampling)(*arrays))

  def edits(
    self,
    images: Sequence[np.ndarray],
    instructions: Sequence[str],
    seeds: Sequence[int],
    sampling: SamplingConfig | None = None,
  ) -> np.ndarray:
    """uint8 [n, H, W, 3]: n images, each changed as its instruction says."""
    return self.images(instructions, seeds, sampling, images)

  def answers(
    self,
    images: Sequence[np.ndarray],
    questions: Sequence[str],
    sampling: SamplingConfig | None = None,
  ) -> list[str]:
    """Decoded answers, one an image and question."""
    sampling = sampling or self.config.sampling
    length, size = self.config.text.prefix, self.config.model.vit.image_size
    rows = np.stack([self.tokenizer.prefix_row(q, length) for q in questions])
    ids = self._map("_answer", sampling)(_pixels(images, size), rows)
    return [self.tokenizer.decode(row.tolist()) for row in ids]

  def reconstruct(self, images: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 images through the autoencoder and back."""
    pixels = _crops(images, self.config.model.image_size)
    return to_uint8(self._map("_reconstruct")(pixels))

  def _need(self, task: str) -> None:
    if not self.config.batch.get(task):
      raise ValueError(
        f"this run was not trained on {task!r} (config.batch.{task}=0)"
      )

  # ------------------------------------------------ functions that are mapped

  def _generate(self, sampling: SamplingConfig):
    def function(params, frozen, text_rows, seeds, *sources):
      keys = jax.vmap(jax.random.key)(seeds)
      prompts = Prompts(text_rows, *sources)
      return self._system.generate(params, frozen, prompts, keys, sampling)

    return function

  def _answer(self, sampling: SamplingConfig):
    def function(params, frozen, images, prefix):
      return self._system.answer(params, frozen, images, prefix, sampling)

    return function

  def _reconstruct(self):
    def function(params, frozen, images):
      del params
      return self._system.reconstruct(frozen, images)

    return function


def check_text(text: str) -> None:
  """Refuses what no tokenizer can read.

  Raises:
    ValueError: empty, or not valid Unicode.
  """
  if not isinstance(text, str):
    raise ValueError(f"expected a text, got {type(text).__name__}")
  if not text.strip():
    raise ValueError("the text is empty")
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f"{text!r} is not valid Unicode (character {error.start})"
    ) from error


def check_seeds(seed: int, count: int) -> None:
  """Refuses seeds that do not fit 32 bits.

  Args:
    seed: of the first image.
    count: images with a seed each, one apart.

  Raises:
    ValueError: names the allowed range.
  """
  last = 2**32 - max(count, 1)
  whole = isinstance(seed, numbers.Integral)
  if not whole or not 0 <= seed <= last:
    raise ValueError(f"seed={seed}: a whole number from 0 to {last}")


def check_sampling(changes: Mapping[str, Any]) -> None:
  """Refuses sampling options that do not exist or are out of range.

  Args:
    changes: fields of SamplingConfig; None: left as it is.

  Raises:
    ValueError: names the option and what it takes.
  """
  hints = typing.get_type_hints(SamplingConfig)
  for name, value in changes.items():
    if name not in hints:
      raise ValueError(
        f"unknown sampling option {name!r}; known: {', '.join(hints)}"
      )
    choices = typing.get_args(hints[name])
    if value is None or value in choices:
      continue
    if choices:
      raise ValueError(f"{name}={value!r}: choose one of {', '.join(choices)}")
    whole = hints[name] is int
    kind = numbers.Integral if whole else numbers.Real
    if not isinstance(value, kind) or isinstance(value, bool):
      what = "a whole number" if whole else "a number"
      raise ValueError(f"{name}={value} must be {what}")
    allowed = ranges.row_of(f"sampling.{name}").range
    if not allowed.holds(int(value) if whole else float(value)):
      raise ValueError(f"{name}={value} must be {allowed}")


def as_array(image: Any, max_pixels: int = MAX_PIXELS) -> np.ndarray:
  """uint8 [H, W, 3] of a PIL image, an array or a file.

  Raises:
    FileNotFoundError: no such file.
    ValueError: no regular file, or no image to decode.
  """
  if isinstance(image, np.ndarray):
    return image
  if isinstance(image, Image.Image):
    return np.asarray(image.convert("RGB"))
  path = epath.Path(image)
  if not path.exists():
    raise FileNotFoundError(f"no image at {path}")
  files.check_regular(path)
  try:
    return decode_image(read_file(path), max_pixels)
  except BadRecord as error:
    raise BadRecord(f"{path}: {error}") from error


def to_uint8(images: Any) -> np.ndarray:
  """[-1, 1] → 0..255, rounded."""
  scaled = (np.asarray(images, np.float32) + 1) * 127.5
  return np.clip(np.round(scaled), 0, 255).astype(np.uint8)


def _pixels(images: Sequence[np.ndarray], size: int) -> np.ndarray:
  return np.stack(
    [transforms.to_float(transforms.squash_resize(x, size)) for x in images]
  )


def _crops(images: Sequence[np.ndarray], size: int) -> np.ndarray:
  return np.stack(
    [
      transforms.to_float(transforms.centre_crop_resize(x, size))
      for x in images
    ]
  )
