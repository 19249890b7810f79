"""Rewards: which drawings of a model are right, for training it on them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from unifluid_jax.data.worlds import written
from unifluid_jax.evals.bench import Bench
from unifluid_jax.evals.worlds import emoji_reward, shapes_reward

# A prompt, under "prompt", and what a reward must know to judge its image.
Asked = Mapping[str, Any]


@runtime_checkable
class Reward(Protocol):
  """What asks for images and judges them; nothing of it is differentiated."""

  def prompts(self, count: int, rng: np.random.Generator) -> Sequence[Asked]:
    """What to draw; prompts may repeat, of training data alone."""

  def judge(
    self, asked: Sequence[Asked], images: UInt8[np.ndarray, "n H W 3"]
  ) -> Float[np.ndarray, "n"]:
    """How right each image is, in [0, 1]; 1 is wholly right."""

  def kind(self, asked: Asked) -> str:
    """What shares of right images are told apart by, e.g. "counting"."""


# By the kind of world that `config.data.world` names.
REWARDS: Mapping[str, Callable[[Bench], Reward]] = {
  written.SHAPES: shapes_reward.ShapesReward,
  written.EMOJI: emoji_reward.EmojiReward,
}


def of(bench: Bench) -> Reward:
  """The reward of a configuration's world.

  Raises:
    ValueError: its data are of none.
  """
  data = bench.config.data
  kind = written.kind_of(data) if dict(data.world) else ""
  if kind not in REWARDS:
    raise ValueError(
      "nothing judges images of these data: config.data.world names none of "
      f"{', '.join(REWARDS)}; a reward of your own is a row of "
      "unifluid_jax.evals.rewards.REWARDS"
    )
  return REWARDS[kind](bench)
