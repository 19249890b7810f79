"""The reward of the emoji world: is the asked picture found again?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from unifluid_jax.evals.bench import Bench
from unifluid_jax.evals.worlds.emoji_album import album_of
from unifluid_jax.evals.worlds.emoji_classifier import judge_of


class EmojiReward:
  """Judges drawings by retrieval within their style; see `rewards.Reward`."""

  def __init__(self, bench: Bench):
    """Of the pictures that the run was trained on.

    Raises:
      ValueError: its data are not of the emoji world.
    """
    self._judge, self._album = judge_of(bench), album_of(bench)

  def prompts(
    self, count: int, rng: np.random.Generator
  ) -> list[dict[str, Any]]:
    """Prompts of training pictures, each once before any comes again."""
    entries = [entry for entry in self._album.trained if entry.prompt]
    order = rng.permutation(len(entries))
    chosen = [entries[order[i % len(order)]] for i in range(count)]
    return [{"prompt": e.prompt, "picture": e.picture} for e in chosen]

  def judge(
    self,
    asked: Sequence[Mapping[str, Any]],
    images: UInt8[np.ndarray, "n H W 3"],
  ) -> Float[np.ndarray, "n"]:
    """1 where no true picture of the style is nearer than the asked one."""
    ranks = self._judge.ranks(images, [task["picture"] for task in asked])
    return (np.asarray(ranks) == 0).astype(np.float32)

  def kind(self, asked: Mapping[str, Any]) -> str:
    """The style."""
    return asked["picture"].style
