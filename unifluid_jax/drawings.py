"""Images while they appear, and images of which a part is drawn again."""

from collections.abc import Callable, Sequence
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
    grid: rows and columns of cells that can be drawn again, of images that
      the run's own sampling options ask for; None: none can.
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
      mapper: see `mappers.Mapper`; it holds the weights.
    """
    self._config, self._system = config, system
    self._rows, self._mapper = rows, mapper
    self._functions: dict[tuple[Any, ...], Callable[..., np.ndarray]] = {}
    self.shows_stages = isinstance(system, Stager)
    redraws = isinstance(system, Redrawer)
    self.grid = self.grid_of(config.sampling) if redraws else None

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
    rows = self.prompts([prompt], sampling)
    call = self._call("stages", tuple(rows), sampling, most)
    found = call(np.asarray([seed], np.uint32), *rows.values())[0]
    return [Image.fromarray(x) for x in transforms.to_uint8(found)]

  def redraw(
    self, prompts: Sequence[str], seed: int, given: Any, again: Any,
    sampling: Any,
  ) -> list[Image.Image]:  # fmt: skip
    """See `api.Model.generate`: one image a prompt.

    Raises:
      ValueError: one of image and cells is missing, not one image a prompt,
        cells of another shape, none at all, or some that the run's order
        cannot draw last.
    """
    for prompt in prompts:
      arguments.check_text(prompt)
    arguments.check_seeds(seed, len(prompts))
    if given is None or again is None:
      raise ValueError("given and redraw belong together: give both")
    again = self._cells(again, sampling)
    if not prompts:
      return []
    images = self._given(given, len(prompts), sampling)
    rows = self.prompts(prompts, sampling)
    call = self._call("redraw", tuple(rows), sampling)
    cells = np.repeat(again.reshape(1, -1), len(prompts), axis=0)
    seeds = np.arange(seed, seed + len(prompts), dtype=np.uint32)
    pixels = np.stack([transforms.to_float(x) for x in images])
    drawn = transforms.to_uint8(call(seeds, pixels, cells, *rows.values()))
    mask = self._pixels(again, images[0])
    return [
      Image.fromarray(np.where(mask, new, old))
      for new, old in zip(drawn, images, strict=True)
    ]

  def grid_of(self, sampling: Any) -> tuple[int, int]:
    """Rows and columns of cells of the images that these options ask for.

    Only for systems that draw cells again.
    """
    side, (rows, columns) = self._config.model.image_size, self._system.grid
    height, width = self._size(sampling)
    return height * rows // side, width * columns // side

  def cells_of(self, box: Sequence[int | float], sampling: Any) -> np.ndarray:
    """The cells that a box touches, bool[rows, columns].

    Args:
      box: left, top, right and bottom in pixels of the image that is drawn,
        right and bottom excluded.
      sampling: how it is drawn.

    Raises:
      ValueError: not four numbers, nothing inside, or beyond the image.
    """
    height, width = self._size(sampling)
    numbers = np.asarray(box, np.float64)
    if numbers.shape != (4,):
      raise ValueError(f"redraw={box!r}: give left, top, right, bottom")
    left, top, right, bottom = numbers
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
      raise ValueError(
        f"redraw={','.join(f'{x:g}' for x in numbers)}: give left < right and "
        f"top < bottom within the drawing's width {width} and height {height}"
      )
    rows, columns = self.grid_of(sampling)
    y, x = np.arange(rows) * height / rows, np.arange(columns) * width / columns
    down = (y < bottom) & (y + height / rows > top)
    across = (x < right) & (x + width / columns > left)
    return down[:, None] & across[None, :]

  def fitted(self, image: np.ndarray, sampling: Any) -> np.ndarray:
    """An image as cells are cut of it: uint8 [H, W, 3] of the drawn size."""
    return transforms.crop_resize(image, self._size(sampling))

  def check(self, again: np.ndarray, sampling: Any) -> None:
    """Whether cells can be drawn again, bool[rows, columns].

    Raises:
      ValueError: none are chosen, or the run's order forbids it.
    """
    if not again.any():
      raise ValueError("no cell is chosen: choose what is to be drawn again")
    spec = systems.spec(self._config.system)
    spec.check_redraw(self._config, sampling, again)

  def _size(self, sampling: Any) -> tuple[int, int]:
    """Height and width of the images that are drawn."""
    side = self._config.model.image_size
    return systems.drawn_size(self._config, sampling) or (side, side)

  def prompts(
    self, prompts: Sequence[str], sampling: Any
  ) -> dict[str, np.ndarray]:
    """Name → array [n, ...]: rows to draw without their images."""
    size = systems.drawn_size(self._config, sampling)
    return self._rows(tasks.T2I, [({"prompt": p}, {}) for p in prompts], size)

  def _given(self, given: Any, count: int, sampling: Any) -> list[np.ndarray]:
    """One image for all prompts, or a list of one each; fitted."""
    listed = isinstance(given, list | tuple)
    if listed and len(given) != count:
      raise ValueError(f"{len(given)} given images for {count} prompts")
    limit = self._config.data.max_pixels
    images = [
      self.fitted(arguments.as_array(x, limit), sampling)
      for x in (given if listed else [given])
    ]
    return images if listed else images * count

  def _cells(self, again: Any, sampling: Any) -> np.ndarray:
    if self.grid is None:
      raise ValueError(
        f"system {self._config.system!r} has no cells that it can draw again: "
        "leave out given and redraw"
      )
    if isinstance(again, list | tuple) and np.ndim(again) == 1:
      again = self.cells_of(again, sampling)
    again, grid = np.asarray(again), self.grid_of(sampling)
    if again.dtype != bool or again.shape != grid:
      raise ValueError(
        f"redraw is {again.dtype}{list(again.shape)}: give bool"
        f"{list(grid)}, or a box of left, top, right, bottom"
      )
    self.check(again, sampling)
    return again

  def _pixels(self, again: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The cells of a mask as pixels, bool[H, W, 1]."""
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
