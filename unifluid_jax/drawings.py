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
    rows = self._prompts([prompt], sampling)
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
    images = self._given(given, len(prompts))
    rows = self._prompts(prompts, sampling)
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

  def cells_of(self, box: Sequence[int | float]) -> np.ndarray:
    """The cells that a box touches, bool[rows, columns].

    Args:
      box: left, top, right and bottom in pixels of the image that is drawn,
        right and bottom excluded.

    Raises:
      ValueError: not four numbers, nothing inside, or beyond the image.
    """
    size = self._config.model.image_size
    numbers = np.asarray(box, np.float64)
    if numbers.shape != (4,):
      raise ValueError(f"redraw={box!r}: give left, top, right, bottom")
    left, top, right, bottom = numbers
    if not (0 <= left < right <= size and 0 <= top < bottom <= size):
      raise ValueError(
        f"redraw={','.join(f'{x:g}' for x in numbers)}: give left < right and "
        f"top < bottom within 0 to {size} pixels"
      )
    rows, columns = self.grid
    y, x = np.arange(rows) * size / rows, np.arange(columns) * size / columns
    down = (y < bottom) & (y + size / rows > top)
    across = (x < right) & (x + size / columns > left)
    return down[:, None] & across[None, :]

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

  def _prompts(
    self, prompts: Sequence[str], sampling: Any
  ) -> dict[str, np.ndarray]:
    """The arrays of some prompts."""
    size = systems.drawn_size(self._config, sampling)
    return self._rows(tasks.T2I, [({"prompt": p}, {}) for p in prompts], size)

  def _given(self, given: Any, count: int) -> list[np.ndarray]:
    """One image for all prompts, or a list of one each; fitted."""
    listed = isinstance(given, list | tuple)
    if listed and len(given) != count:
      raise ValueError(f"{len(given)} given images for {count} prompts")
    limit = self._config.data.max_pixels
    images = [
      self.fitted(arguments.as_array(x, limit))
      for x in (given if listed else [given])
    ]
    return images if listed else images * count

  def _cells(self, again: Any, sampling: Any) -> np.ndarray:
    if self.grid is None:
      raise ValueError(
        f"system {self._config.system!r} cannot draw cells again: leave out "
        "given and redraw"
      )
    if isinstance(again, list | tuple) and np.ndim(again) == 1:
      again = self.cells_of(again)
    again = np.asarray(again)
    if again.dtype != bool or again.shape != self.grid:
      raise ValueError(
        f"redraw is {again.dtype}{list(again.shape)}: give bool"
        f"{list(self.grid)}, or a box of left, top, right, bottom"
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
