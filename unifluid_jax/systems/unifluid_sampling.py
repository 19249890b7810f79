"""How a UniFluid run draws, and what it cannot draw with."""

import dataclasses
from typing import Any, Literal

from unifluid_jax.core.config import option
from unifluid_jax.core.freeze import need
from unifluid_jax.models import token_head
from unifluid_jax.systems.common import drawn_cells


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How images and text are drawn from the model."""

  steps: int = option("images")  # of the diffusion head
  cfg: float = option("images")  # 1: no guidance
  temperature: float = option("images")
  # spread: groups of far cells near known ones; farthest: cells all over the
  # image first; see ops/order.py.
  order: Literal["raster", "random", "spread", "farthest"] = option("images")
  text: Literal["greedy", "sample", "beam"] = option("text")
  text_temperature: float = option("text")
  top_k: int = option("text")  # 0: off
  top_p: float = option("text")  # 1: off
  beams: int = option("text")
  seed: int
  cfg_schedule: Literal["constant", "linear"] = option(
    "images", default="constant"
  )
  # Bound of predicted clean tokens, in latent units; 0: off, as MAR.
  clip: float = option("images", default=0.0)
  # Of flow heads; Heun's takes two evaluations a step, but one for the last.
  solver: Literal["euler", "heun"] = option("images", default="euler")
  # Steps of the token drawn last, with fewer and fewer from the first to it
  # (DiSA); 0: all tokens have `steps`.
  last_steps: int = option("images", default=0)
  # Passes of the decoder for an image, several tokens in each; 0: one a token.
  passes: int = option("images", default=0)
  # Guidance of edits towards their source; 1: no separate one.
  image_cfg: float = option("edits", default=1.0)


def check(c: Any) -> None:
  """Refuses a configuration whose own options its run could not draw with.

  Args:
    c: a `config.Config`.

  Raises:
    ConfigError: names the keys.
  """
  draws = c.batch.get("t2i") or c.batch.get("edit")
  need(
    c.sampling.cfg == 1 or c.loss.prompt_dropout > 0 or not draws,
    "sampling.cfg != 1 needs a null condition: set loss.prompt_dropout > 0 "
    "or sampling.cfg=1",
  )
  unguided = c.sampling.image_cfg == 1 or not c.batch.get("edit")
  need(
    unguided or c.loss.image_dropout > 0,
    "sampling.image_cfg != 1 needs edits without their source: set "
    "loss.image_dropout > 0 or sampling.image_cfg=1",
  )
  need(
    unguided or c.loss.prompt_dropout > 0,
    "sampling.image_cfg != 1 needs edits without their instruction, too: set "
    "loss.prompt_dropout > 0 or sampling.image_cfg=1",
  )
  wrong = _refusal(c, c.sampling)
  need(not wrong, f"sampling.{wrong}")


def check_sampling(config: Any, sampling: SamplingConfig, task: str) -> None:
  """Refuses conditions, groups of tokens and steps that the run never saw.

  Args:
    config: of the run.
    sampling: how images are to be drawn.
    task: "t2i" or "edit".

  Raises:
    ValueError: names the options and the fix.
  """
  if task == "edit" and sampling.image_cfg != 1:
    if not config.loss.image_dropout:
      raise ValueError(
        f"image_cfg={sampling.image_cfg} guides away from edits without a "
        "source, which this run never saw (config.loss.image_dropout=0): "
        "use image_cfg=1"
      )
    # Both null conditions of such an edit lack its instruction.
    if not config.loss.prompt_dropout:
      raise ValueError(
        f"image_cfg={sampling.image_cfg} guides away from edits without an "
        "instruction, which this run never saw (config.loss.prompt_dropout=0): "
        "use image_cfg=1"
      )
  if sampling.cfg != 1 and not config.loss.prompt_dropout:
    raise ValueError(
      f"cfg={sampling.cfg} guides away from images without a prompt, which "
      "this run never saw (config.loss.prompt_dropout=0): use cfg=1"
    )
  if wrong := _refusal(config, sampling):
    raise ValueError(wrong)


def _refusal(config: Any, sampling: SamplingConfig) -> str:
  """Why a run cannot draw tokens as asked for; "" if it can."""
  n, loss = config.model.image_tokens, config.loss
  if sampling.passes > n:
    return f"passes={sampling.passes}: an image has {n} tokens"
  passes = sampling.passes or n
  if draws_any_cell(config):
    pass
  elif loss.order == "raster" and passes < n:
    return (
      f"passes={passes} draws several tokens at once, and this run "
      "ends in raster order alone (loss.raster_from is less than steps and "
      "loss.random_share is 0): use passes=0"
    )
  elif loss.order != "raster" and sampling.order != loss.order:
    return (
      f"order={sampling.order!r}: this run ends in order {loss.order!r} alone "
      f"(loss.random_share is 0): use order={loss.order!r}"
    )
  elif loss.order != "raster" and passes < (loss.passes or n):
    return (
      f"passes={passes}: this run has learned loss.passes={loss.passes or n}: "
      "use as many or more"
    )
  return token_head.refusal(config.model.head.kind, sampling)


def draws_any_cell(config: Any) -> bool:
  """Whether training ends with some orders still random."""
  loss = config.loss
  return loss.random_share > 0 or loss.raster_from >= config.steps > 0


def check_redraw(config: Any, sampling: SamplingConfig, again: Any) -> None:
  """Refuses cells the run's order cannot draw last; see `SystemSpec`."""
  if draws_any_cell(config):
    return
  if config.loss.order != "raster":
    raise ValueError(
      f"redraw: this run ends in order {config.loss.order!r} alone "
      "(loss.random_share is 0), and can draw whole images only"
    )
  if sampling.order == "raster":
    drawn_cells.check_redraw(config, sampling, again)
