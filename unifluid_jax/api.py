"""The Python API: a trained model's folder in, images and answers out."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from unifluid_jax import arguments, loading, scores, systems
from unifluid_jax.arguments import as_array as as_array
from unifluid_jax.codecs.inputs import encode_pixels
from unifluid_jax.core.config import Config
from unifluid_jax.data import fields, tasks, transforms
from unifluid_jax.data.fields import Example, Picture
from unifluid_jax.data.records import Record
from unifluid_jax.data.transforms import to_uint8 as to_uint8
from unifluid_jax.dialogues import Dialogues, messages_of, turns_of
from unifluid_jax.drawings import Drawings
from unifluid_jax.loading import check_frozen as check_frozen
from unifluid_jax.loading import generator as generator
from unifluid_jax.loading import read_params as read_params
from unifluid_jax.loading import read_tokenizer as read_tokenizer
from unifluid_jax.loading import spec_of as spec_of
from unifluid_jax.mappers import Mapper
from unifluid_jax.mappers import jitted as jitted


def load(
  workdir: str,
  *,
  step: int | None = None,
  ema: bool | None = None,
  codec_path: str | None = None,
) -> "Model":
  """Loads a trained model.

  Args:
    workdir: of `python -m unifluid_jax.main`, a folder that
      `python -m unifluid_jax.export` wrote, or the name of a model that ships
      with the package (`boxed.names()`).
    step: checkpoint of a run; default the newest.
    ema: averaged weights of a run; default as config.eval.use_ema says.
    codec_path: where the image tokenizer lies, of a run that was moved and has
      no copy of it.

  Returns:
    A model that generates, captions, answers and edits.

  Raises:
    checkpoint.CheckpointError: nothing usable there; says why.
    ConfigError: no image tokenizer, or not the one the run was trained on.
  """
  parts = loading.read(workdir, step, ema, codec_path)
  weights = jitted(parts.params, parts.frozen, 32)
  return Model(parts.config, parts.system, parts.tokenizer, weights)


class Images(NamedTuple):
  """What calling a model returns, as pipelines of diffusers do."""

  images: list[Image.Image]


class Model:
  """A trained system: text to image, image to text, edits.

  Sampling options may have diffusers' names: guidance_scale for cfg,
  num_inference_steps for steps, generator (a seed, a numpy or a PyTorch
  Generator) for seed.
  """

  def __init__(
    self, config: Config, system: Any, tokenizer: Any, mapper: Mapper
  ):
    """Binds a system to weights, which the mapper holds."""
    self.config = config
    self.tokenizer, self._system = tokenizer, system
    limit = config.data.max_pixels
    self._as_array = functools.partial(as_array, max_pixels=limit)
    self._drawing = functools.cache(lambda *how: mapper(self._draw(*how)))
    self._answering = functools.cache(lambda *how: mapper(self._say(*how)))
    self._reconstruction = mapper(self._through_codec)
    calls = self._drawing, self._answering
    self.dialogues = Dialogues(config, system, tokenizer, *calls)
    self.drawings = Drawings(config, system, self._rows, mapper)
    numbers = scores.Scores(config, system, tokenizer, mapper)
    self.log_likelihoods, self.losses = numbers.log_likelihoods, numbers.losses

  # ------------------------------------------------------------- for people

  def __call__(
    self, prompt: str | Sequence[str], seed: int | None = None, **sampling: Any
  ) -> Images:
    """`generate`, for those used to diffusers: `model(prompt).images[0]`."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    return Images(self.generate(prompts, seed, **sampling))

  def generate(
    self,
    prompt: str | Sequence[str],
    seed: int | None = None,
    *,
    given: Any = None,
    redraw: Any = None,
    **sampling: Any,
  ) -> Any:
    """Draws an image of a prompt.

    Args:
      prompt: a text, or several.
      seed: of the first prompt, default 0; the next has seed + 1, and so on.
        An image depends on its prompt, its seed and the sampling options
        alone.
      given: an image (PIL image, array or path) of which a part is drawn
        again; a list has one a prompt.
      redraw: that part, bool[rows, columns] of `drawings.grid` (with an option
        `size`, of `drawings.grid_of`), or a box
        (left, top, right, bottom) in pixels of the image that is drawn, whose
        cells these are; the other cells are returned as they are.
      **sampling: options of the system, e.g. cfg, size=(height, width).

    Returns:
      A PIL image; a list for a list.

    Raises:
      ValueError: an empty prompt, a seed or an option out of range; cells that
        the run's order cannot draw again.
    """
    seed, sampling = arguments.seed_of(seed, sampling)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if given is not None or redraw is not None:
      options = self._sampling(sampling)
      drawn = self.drawings.redraw(prompts, seed, given, redraw, options)
      return drawn[0] if isinstance(prompt, str) else drawn
    for each in prompts:
      arguments.check_text(each)
    arguments.check_seeds(seed, len(prompts))
    if not prompts:
      return []
    seeds = [seed + i for i in range(len(prompts))]
    images = self.images(prompts, seeds, self._sampling(sampling))
    pictures = [Image.fromarray(x) for x in images]
    return pictures[0] if isinstance(prompt, str) else pictures

  def stages(
    self, prompt: str, seed: int = 0, most: int = 16, **sampling: Any
  ) -> list[Image.Image]:
    """An image of a prompt while it appears: at most `most`, the last whole.

    Cell by cell, those not drawn yet grey; or coarse at first, of systems that
    draw scale by scale.
    """
    return self.drawings.stages(prompt, seed, most, self._sampling(sampling))

  def caption(self, image: Any, **sampling: Any) -> Any:
    """Describes an image, or each of a list, as `answer` does."""
    return self.answer(image, self.config.data.caption_prefix, **sampling)

  def answer(
    self, image: Any, question: str | Sequence[str], **sampling: Any
  ) -> Any:
    """Answers a question about an image.

    Args:
      image: a PIL image, an array or a path; or a list of them, answered in
        batches.
      question: a text; with a list of images also one for each.
      **sampling: options of the system.

    Returns:
      A text; a list for a list.

    Raises:
      ValueError: not one question an image, an option out of range.
    """
    options, several = self._sampling(sampling), isinstance(image, list | tuple)
    images = [self._as_array(x) for x in (image if several else [image])]
    single = isinstance(question, str)
    questions = [question] * len(images) if single else list(question)
    if len(questions) != len(images) or not (single or several):
      raise ValueError(
        f"{len(questions)} questions and {len(images)} images: give a text, or "
        "a list of images and one question for each"
      )
    found = self.answers(images, questions, options) if images else []
    return found if several else found[0]

  def unknown_words(self, text: str) -> list[str]:
    """Words of a text that the run's tokenizer was not trained on."""
    return self.tokenizer.unknown_words(text) if self.tokenizer else []

  def is_cut(self, text: str, task: str = tasks.T2I) -> bool:
    """Whether the end of a text does not fit, and is not read.

    Args:
      text: a prompt; with "i2t" a question, with "edit" an instruction.
      task: one that the system can do.
    """
    if self.tokenizer is None:
      return False
    before = self.tokenizer.truncated
    words = {"prefix" if task == tasks.I2T else "prompt": text}
    grey = np.full((8, 8, 3), 128, np.uint8)
    seen = {} if task == tasks.T2I else {"seen": _picture(grey)}
    size = systems.drawn_size(self.config, self.config.sampling)
    self._rows(task, [(words, seen)], None if task == tasks.I2T else size)
    return self.tokenizer.truncated > before

  def edit(
    self, image: Any, instruction: str, seed: int | None = None, **sampling: Any
  ) -> Image.Image:
    """Changes an image as told; needs a run that was trained with edits."""
    seed, sampling = arguments.seed_of(seed, sampling)
    arguments.check_text(instruction)
    arguments.check_seeds(seed, 1)
    options = self._sampling(sampling)
    out = self.edits([self._as_array(image)], [instruction], [seed], options)
    return Image.fromarray(out[0])

  def complete(
    self, parts: Sequence[Any], seed: int | None = None, **sampling: Any
  ) -> Any:
    """Goes on where texts and images end: with a str or a PIL image.

    Needs a system that does dialogues, best a run that was trained on them
    (task "dialogue"); of long ones the last parts that fit count.

    Args:
      parts: texts, and images (PIL image, array or `pathlib` path).
      seed: of an image that is drawn, default 0.
      **sampling: options of the system.

    Raises:
      ValueError: no parts, or one, a seed or an option that cannot be.
    """
    seed, sampling = arguments.seed_of(seed, sampling)
    turns = turns_of(parts, self._as_array)
    found = self.dialogues.continued(turns, seed, self._sampling(sampling))
    return found if isinstance(found, str) else Image.fromarray(found)

  def chat(
    self,
    messages: Sequence[Mapping[str, Any]],
    seed: int | None = None,
    **sampling: Any,
  ) -> list[Any]:
    """Replies with texts and PIL images; see `dialogues.messages_of`."""
    seed, sampling = arguments.seed_of(seed, sampling)
    turns = messages_of(messages, self._as_array)
    found = self.dialogues.reply(turns, seed, self._sampling(sampling))
    return [x if isinstance(x, str) else Image.fromarray(x) for x in found]

  def _sampling(self, changes: dict[str, Any]) -> Any:
    spec = systems.spec(self.config.system)
    changes = arguments.renamed(changes, spec.sampling)
    arguments.check_sampling(changes, spec.sampling, spec.ranges)
    changes = {k: v for k, v in changes.items() if v is not None}
    sampling = dataclasses.replace(self.config.sampling, **changes)
    if changes:
      spec.check_sampling(self.config, sampling, tasks.T2I)
    return sampling

  # -------------------------------------------------------------- in batches

  def images(
    self,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Any = None,
    sources: Sequence[np.ndarray] | None = None,
  ) -> np.ndarray:
    """uint8 [n, H, W, 3] for n prompts; `sources` are images to edit."""
    sampling = sampling or self.config.sampling
    task = tasks.T2I if sources is None else tasks.EDIT
    if sources is not None:
      self._need(task)
      check = systems.spec(self.config.system).check_sampling
      check(self.config, sampling, task)
    seen = [{}] * len(prompts)
    if sources is not None:
      seen = [{"seen": _picture(x)} for x in sources]
    asked = [({"prompt": p}, s) for p, s in zip(prompts, seen, strict=True)]
    size = systems.drawn_size(self.config, sampling)
    rows = self._rows(task, asked, size)
    call = self._drawing(task, tuple(rows), sampling)
    return to_uint8(call(np.asarray(seeds, np.uint32), *rows.values()))

  def edits(
    self,
    images: Sequence[np.ndarray],
    instructions: Sequence[str],
    seeds: Sequence[int],
    sampling: Any = None,
  ) -> np.ndarray:
    """uint8 [n, H, W, 3]: n images, each changed as its instruction says."""
    return self.images(instructions, seeds, sampling, images)

  def answers(
    self,
    images: Sequence[np.ndarray],
    questions: Sequence[str],
    sampling: Any = None,
  ) -> list[str]:
    """Decoded answers, one an image (or series of them) and question."""
    sampling = sampling or self.config.sampling
    asked = zip(images, questions, strict=True)
    rows = self._rows(
      tasks.I2T, [({"prefix": q}, {"seen": _picture(x)}) for x, q in asked]
    )
    call = self._answering(tasks.I2T, tuple(rows), sampling)
    ids = call(np.arange(len(questions), dtype=np.uint32), *rows.values())
    return [self.tokenizer.decode(row.tolist()) for row in ids]

  def look(self, record: Record) -> np.ndarray:
    """What the model sees of a record: uint8 [S, S, 3], or [F, S, S, 3].

    Raises:
      BadRecord: an image that cannot be read.
    """
    seen = Picture((record.image, *record.more), record.marks)
    limit = self.config.data.max_pixels
    inputs = self._inputs(tasks.I2T).values()
    field = next(f for f in inputs if getattr(f, "role", None) == "seen")
    return field.view(Example({}, {"seen": seen}, None, limit))

  def reconstruct(
    self, images: Sequence[np.ndarray] | np.ndarray
  ) -> np.ndarray:
    """uint8 images through the image tokenizer and back."""
    size = self.config.model.image_size
    crops = [transforms.centre_crop_resize(x, size) for x in images]
    pixels = np.stack([transforms.to_float(x) for x in crops])
    return to_uint8(self._reconstruction(pixels))

  def _need(self, task: str) -> None:
    if not self.config.batch.get(task):
      raise ValueError(
        f"this run was not trained on {task!r} (config.batch.{task}=0)"
      )

  def _inputs(self, task: str) -> Mapping[str, Any]:
    """The fields of a task that the system can do."""
    if task not in self._system.inputs:
      raise ValueError(
        f"system {self.config.system!r} cannot do {task!r}, only "
        f"{', '.join(self._system.inputs)}"
      )
    return self._system.inputs[task]

  def _rows(
    self,
    task: str,
    asked: Sequence[tuple[Mapping[str, str], Mapping[str, Picture]]],
    size: transforms.Size | None = None,
  ) -> dict[str, np.ndarray]:
    """Texts and images as a batch of the task's fields without targets."""
    inputs, limit = self._inputs(task), self.config.data.max_pixels
    rows = [
      fields.arrays(
        fields.prompts(inputs, images),
        Example(texts, images, self.tokenizer, limit, size=size),
      )
      for texts, images in asked
    ]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

  # ------------------------------------------------ functions that are mapped

  def _draw(self, task: str, names: tuple[str, ...], sampling: Any):
    def function(params, frozen, seeds, *arrays):
      prompts = {task: dict(zip(names, arrays, strict=True))}
      prompts = encode_pixels(self._system, frozen, prompts)
      keys = jax.vmap(jax.random.key)(seeds)
      return self._system.generate(params, frozen, prompts, keys, sampling)

    return function

  def _say(self, task: str, names: tuple[str, ...], sampling: Any):
    def function(params, frozen, rows, *arrays):
      prompts = {task: dict(zip(names, arrays, strict=True))}
      prompts = encode_pixels(self._system, frozen, prompts)
      key = jax.random.key(sampling.seed)
      keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
      return self._system.answer(params, frozen, prompts, keys, sampling)

    return function

  def _through_codec(self, params, frozen, images):
    return self._system.reconstruct(params, frozen, images)


def _picture(image: np.ndarray) -> Picture:
  """An array [H, W, 3], or several [F, H, W, 3], as an example holds it."""
  return Picture(tuple(image) if image.ndim > 3 else (image,))
