"""Texts and images in their order, continued by a text or by an image."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from unifluid_jax import arguments, systems
from unifluid_jax.core.config import Config
from unifluid_jax.data import conversation, fields, tasks, transforms
from unifluid_jax.data.conversation import Reply
from unifluid_jax.data.fields import Example
from unifluid_jax.data.records import Turn

MOST_PARTS = 8  # texts and images of one reply

# (task, names of arrays, sampling options) → a function of the arrays.
Compiled = Callable[[str, tuple[str, ...], Any], Callable[..., np.ndarray]]


class Dialogues:
  """What a trained system makes of dialogues; `api.Model` holds one."""

  def __init__(
    self,
    config: Config,
    system: Any,
    tokenizer: Any,
    drawing: Compiled,
    answering: Compiled,
  ):
    """Binds a system to its compiled functions.

    Args:
      config: of the run.
      system: its inputs are read.
      tokenizer: of the run.
      drawing: seeds u32[n] and rows → images in [-1, 1], f32[n, H, W, 3].
      answering: row numbers u32[n] and rows → token ids i32[n, A].
    """
    self._config, self._system, self._tokenizer = config, system, tokenizer
    self._drawing, self._answering = drawing, answering

  def texts(
    self, dialogues: Sequence[Sequence[Turn]], sampling: Any = None
  ) -> list[str]:
    """The text that continues each; empty where an image would."""
    return [reply.text for reply in self.replies(dialogues, sampling)]

  def replies(
    self, dialogues: Sequence[Sequence[Turn]], sampling: Any = None
  ) -> list[Reply]:
    """The same, and whether an image follows."""
    found = self.answers(dialogues, sampling)  # refuses what has no dialogues
    boi = self._tokenizer.special["boi"]
    return [
      Reply(
        self._tokenizer.decode(row.tolist()).strip(), bool((row == boi).any())
      )
      for row in found
    ]

  def answers(
    self, dialogues: Sequence[Sequence[Turn]], sampling: Any = None
  ) -> np.ndarray:
    """The same as token ids i32[n, A]; BOI ends what an image follows."""
    rows = self._rows(dialogues)
    call = self._answering(
      tasks.DIALOGUE, tuple(rows), sampling or self._config.sampling
    )
    return call(np.arange(len(dialogues), dtype=np.uint32), *rows.values())

  def images(
    self,
    dialogues: Sequence[Sequence[Turn]],
    seeds: Sequence[int],
    sampling: Any = None,
  ) -> np.ndarray:
    """The image that continues each, u8[n, H, W, 3]."""
    sampling = sampling or self._config.sampling
    check = systems.spec(self._config.system).check_sampling
    check(self._config, sampling, tasks.DIALOGUE)
    rows = self._rows(dialogues)
    call = self._drawing(tasks.DIALOGUE, tuple(rows), sampling)
    return transforms.to_uint8(
      call(np.asarray(seeds, np.uint32), *rows.values())
    )

  def continued(
    self, turns: Sequence[Turn], seed: int, sampling: Any
  ) -> str | np.ndarray:
    """A text, or an image u8[H, W, 3] where the model begins one."""
    arguments.check_seeds(seed, 1)
    (ids,) = self.answers([turns], sampling)
    if ids[0] == self._tokenizer.special["boi"]:
      return self.images([turns], [seed], sampling)[0]
    return self._tokenizer.decode(ids.tolist()).strip()

  def reply(
    self, turns: Sequence[Turn], seed: int, sampling: Any
  ) -> list[str | np.ndarray]:
    """What the model says after a user's message: texts and images.

    It goes on after an image until it ends its message, `MOST_PARTS` at most.
    What it has drawn is a part of what it goes on from, encoded anew.

    Args:
      turns: messages, the user's last.
      seed: of the first image; the next has seed + 1, and so on.
      sampling: options of the system.
    """
    arguments.check_seeds(seed, MOST_PARTS)
    said: list[Turn] = []
    while len(said) < MOST_PARTS:
      (reply,) = self.replies([[*turns, *said]], sampling)
      if reply.text:
        said.append(Turn(reply.text, role=conversation.ASSISTANT))
      if not reply.draws or len(said) == MOST_PARTS:
        break
      drawn = sum(turn.image is not None for turn in said)
      (image,) = self.images([[*turns, *said]], [seed + drawn], sampling)
      said.append(Turn(image=image, role=conversation.ASSISTANT))
    return [turn.text if turn.image is None else turn.image for turn in said]

  def _rows(self, dialogues: Sequence[Sequence[Turn]]) -> dict[str, np.ndarray]:
    """Prompts of the task; of long ones the last turns that fit."""
    if tasks.DIALOGUE not in self._system.inputs:
      raise ValueError(
        f"this run has no rows for dialogues: system {self._config.system!r}, "
        f"config.text.dialogue={self._config.text.dialogue}"
      )
    inputs = fields.prompts(self._system.inputs[tasks.DIALOGUE], {})
    limit, chat = self._config.data.max_pixels, self._config.text.chat
    rows = [
      fields.arrays(
        inputs, Example({}, {}, self._tokenizer, limit, tuple(turns), chat=chat)
      )
      for turns in dialogues
    ]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def messages_of(
  messages: Sequence[Mapping[str, Any]], as_array: Callable[[Any], np.ndarray]
) -> list[Turn]:
  """Messages of a conversation as turns.

  Args:
    messages: {"role": ..., "content": ...}, the system's first, if any, then
      the user's and the assistant's in turn, the user's last. The content is a
      text, an image, or a list of both.
    as_array: u8[H, W, 3] of an image.

  Raises:
    ValueError: no or another role or content, or roles out of turn.
    FileNotFoundError: no such file.
  """
  turns = []
  for i, message in enumerate(messages):
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
      raise ValueError(
        f"message {i} must be a dict of 'role' and 'content', got {message!r}"
      )
    role, content = message["role"], message["content"]
    parts = content if isinstance(content, (list, tuple)) else [content]
    own = role == conversation.ASSISTANT
    turns += [
      turn._replace(role=role, target=own) for turn in turns_of(parts, as_array)
    ]
  if not turns:
    raise ValueError("expected a list of messages, at least one")
  roles = [message["role"] for message in messages]
  conversation.check_roles(roles)
  if roles[-1] != conversation.USER:
    raise ValueError(f"the last message is the {roles[-1]}'s, not the user's")
  return turns


def turns_of(
  parts: Sequence[Any], as_array: Callable[[Any], np.ndarray]
) -> list[Turn]:
  """Texts and images as turns.

  Args:
    parts: texts, and images that are PIL images, arrays or `pathlib` paths: a
      str is always a text.
    as_array: u8[H, W, 3] of an image.

  Raises:
    ValueError: nothing, an empty text, or an image that cannot be read.
    FileNotFoundError: no such file.
  """
  if isinstance(parts, (str, bytes)) or not len(parts):
    raise ValueError("expected a list of texts and images, at least one")
  turns = []
  for part in parts:
    if isinstance(part, (Image.Image, np.ndarray, os.PathLike)):
      turns.append(Turn(image=as_array(part), target=False))
      continue
    if not isinstance(part, str):
      raise ValueError(
        f"expected a text, an image or a path, got {type(part).__name__}"
      )
    arguments.check_text(part)
    turns.append(Turn(part))
  return turns
