"""Images while they appear, and images of which a part is drawn again."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from unifluid_jax import arguments, systems
from unifluid_jax.core.config import Config
from unifluid_jax.core.types import Redrawer, Stager
from unifluid_jax.data import tasks, transforms


class Drawings:
  """What systems offer that are `Stager` or `Redrawer`; `api.Model` has one.

  Attributes:
    shows_stages: whether images can be seen while they appear.
    grid: rows and columns of cells that can be drawn again; None: none can.
  """

  def __init__(
    self,
    config: Config,
    system: Any,
    rows: Callable[..., dict[str, np.ndarray]],
    mapper: Callable[[Callable[..., Any]], Callable[..., np.ndarray]],
  ):
    """Binds a system to its weights.

    Args:
      config: of the run.
      system: any Generator.
      rows: task, texts and images, size → arrays of the task's fields.
      mapper: see `api.Mapper`; it holds the weights.
    """
    self._config, self._system = config, system
    self._rows, self._mapper = rows, mapper
    self._functions: dict[tuple[Any, ...], Callable[..., np.ndarray]] = {}
    self.shows_stages = isinstance(system, Stager)
    self.grid = system.grid if isinstance(system, Redrawer) else None

  def stages(
    self, prompt: str, seed: int, most: int, sampling: Any
  ) -> list[Image.Image]:
    """See `api.Model.stages`.

    Raises:
      ValueError: an empty prompt, a seed out of range, a system that does not
        show how it draws.
    """
    arguments.check_text(prompt)
    arguments.check_seeds(seed, 1)
    if not self.shows_stages:
      raise ValueError(
        f"system {self._config.system!r} does not show how an image appears: "
        "use generate"
      )
    if most < 1:
      raise ValueError(f"most={most} must be at least 1")
    rows = self._prompt(prompt, sampling)
    call = self._call("stages", tuple(rows), sampling, most)
    found = call(np.asarray([seed], np.uint32), *rows.values())[0]
    return [Image.fromarray(x) for x in transforms.to_uint8(found)]

  def redraw(
    self, prompt: Any, seed: int, given: Any, again: Any, sampling: Any
  ) -> Image.Image:
    """See `api.Model.generate`.

    Raises:
      ValueError: one of image and cells is missing, cells of another shape,
        none at all, or some that the run's order cannot draw last.
    """
    arguments.check_text(prompt)
    arguments.check_seeds(seed, 1)
    if given is None or again is None:
      raise ValueError("given and redraw belong together: give both")
    again = self._cells(again, sampling)
    image = arguments.as_array(given, self._config.data.max_pixels)
    image = self.fitted(image)
    rows = self._prompt(prompt, sampling)
    call = self._call("redraw", tuple(rows), sampling)
    pixels = transforms.to_float(image)[None]
    seeds = np.asarray([seed], np.uint32)
    drawn = call(seeds, pixels, again.reshape(1, -1), *rows.values())
    drawn = transforms.to_uint8(drawn)[0]
    return Image.fromarray(np.where(self._pixels(again, image), drawn, image))

  def fitted(self, image: np.ndarray) -> np.ndarray:
    """An image as cells are cut of it: uint8 [S, S, 3]."""
    return transforms.centre_crop_resize(image, self._config.model.image_size)

  def check(self, again: np.ndarray, sampling: Any) -> None:
    """Whether cells can be drawn again, bool[rows, columns].

    Raises:
      ValueError: none are chosen, or the run's order forbids it.
    """
    if not again.any():
      raise ValueError("no cell is chosen: choose what is to be drawn again")
    spec = systems.spec(self._config.system)
    spec.check_redraw(self._config, sampling, again)

  def _prompt(self, prompt: str, sampling: Any) -> dict[str, np.ndarray]:
    """The arrays of one prompt."""
    size = systems.drawn_size(self._config, sampling)
    return self._rows(tasks.T2I, [({"prompt": prompt}, {})], size)

  def _cells(self, again: Any, sampling: Any) -> np.ndarray:
    if self.grid is None:
      raise ValueError(
        f"system {self._config.system!r} cannot draw cells again: leave out "
        "given and redraw"
      )
    again = np.asarray(again)
    if again.dtype != bool or again.shape != self.grid:
      raise ValueError(
        f"redraw is {again.dtype}{list(again.shape)}: give bool"
        f"{list(self.grid)}"
      )
    self.check(again, sampling)
    return again

  def _pixels(self, again: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The cells of a mask as pixels, bool[S, S, 1]."""
    (height, width), (rows, columns) = image.shape[:2], again.shape
    cell = np.ones((height // rows, width // columns), bool)
    return np.kron(again, cell)[..., None]

  def _call(self, what: str, names: tuple[str, ...], sampling: Any, *how: Any):
    """The compiled function of these options."""
    key = (what, names, sampling, *how)
    if key not in self._functions:
      draw = self._stages if what == "stages" else self._redraw
      self._functions[key] = self._mapper(draw(names, sampling, *how))
    return self._functions[key]

  # ------------------------------------------------ functions that are mapped

  def _stages(self, names: tuple[str, ...], sampling: Any, most: int):
    def function(params, frozen, seeds, *arrays):
      prompts = {tasks.T2I: dict(zip(names, arrays, strict=True))}
      keys = jax.vmap(jax.random.key)(seeds)
      return self._system.stages(params, frozen, prompts, keys, sampling, most)

    return function

  def _redraw(self, names: tuple[str, ...], sampling: Any):
    def function(params, frozen, seeds, given, again, *arrays):
      prompts = {tasks.T2I: dict(zip(names, arrays, strict=True))}
      keys = jax.vmap(jax.random.key)(seeds)
      return self._system.redraw(
        params, frozen, prompts, keys, sampling, given, jnp.asarray(again)
      )

    return function
