"""Messages of a user and a model as turns: texts and images in their order.

Placeholders stand where images do, as in VARGPT's data (arXiv 2501.12327 §3
and Figure 6): `<image>` for one that the user shows, `<image_gen>` for one
that the model draws. What the model says and draws is learned.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from unifluid_jax.data.records import Turn

SEEN, DRAWN = "<image>", "<image_gen>"
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = (SYSTEM, USER, ASSISTANT)

_PLACEHOLDER = re.compile(f"({SEEN}|{DRAWN})")
# Whose messages may hold which placeholder.
_HOLDS = {SEEN: USER, DRAWN: ASSISTANT}
_FIXES = {
  (SEEN, ASSISTANT): f"write {DRAWN} for an image that the model draws",
  (DRAWN, USER): f"write {SEEN} for an image that the user shows",
}


class Message(NamedTuple):
  """What one side says at a time; placeholders stand for its images."""

  role: str  # one of ROLES
  content: str


class Reply(NamedTuple):
  """What a model answers, up to where it begins an image."""

  text: str
  draws: bool  # whether an image follows the text


def turns_of(
  messages: Sequence[Message], images: Sequence[Any]
) -> tuple[Turn, ...]:
  """The turns of a conversation.

  Texts lose the white space around placeholders and at their ends.

  Args:
    messages: the system's, if any, then the user's and the model's in turn.
    images: one per placeholder, in the order of the text.

  Raises:
    ValueError: roles out of turn, an empty message, a placeholder in the wrong
      one, or more or fewer placeholders than images.
  """
  if not messages:
    raise ValueError("no messages")
  check_roles([m.role for m in messages])
  turns, left = [], list(images)
  asked = sum(len(_PLACEHOLDER.findall(m.content)) for m in messages)
  if asked != len(left):
    raise ValueError(
      f"{asked} placeholders ({SEEN}, {DRAWN}) but {len(left)} images: list "
      "one image for each, in their order"
    )
  for i, (role, content) in enumerate(messages):
    before = len(turns)
    for part in _PLACEHOLDER.split(content):
      if part in _HOLDS:
        if role != _HOLDS[part]:
          fix = _FIXES.get((part, role), "move it to the user's message")
          raise ValueError(f"message {i} ({role}) holds {part}: {fix}")
        turns.append(Turn("", left.pop(0), role == ASSISTANT, role))
      elif text := part.strip():
        turns.append(Turn(text, None, role == ASSISTANT, role))
    if len(turns) == before:
      raise ValueError(f"message {i} ({role}) is empty: fill or remove it")
  return tuple(turns)


def check_roles(roles: Sequence[str]) -> None:
  """Refuses roles that do not take turns, the user's first.

  Raises:
    ValueError: names the first that is out of turn.
  """
  start = int(roles[0] == SYSTEM)
  for i, role in enumerate(roles):
    if role not in ROLES:
      raise ValueError(
        f"message {i} has the role {role!r}: use {', '.join(ROLES)}"
      )
    due = (USER, ASSISTANT)[(i - start) % 2] if i >= start else SYSTEM
    if role != due:
      raise ValueError(
        f"message {i} is the {role}'s where the {due}'s is due: after the "
        "system's, if any, user and assistant take turns"
      )


def learned(turns: Sequence[Turn]) -> bool:
  """Whether there is anything to learn: a message of the model."""
  return any(turn.target for turn in turns)
