"""Interleaved rows: texts and images in their order as one row of tokens.

The order of a row is Liquid's (arXiv 2412.04332 §4.4; its collator for the
tokens around an image): BOS, the turns, EOS. An image is BOI, its N codes,
EOI; texts that follow one another are separated by the newline.

Turns with roles are a conversation. As LLaVA's Vicuna rows (arXiv 2310.03744;
VARGPT, arXiv 2501.12327 §4.2, trains on them) they are

  BOS system USER: question ASSISTANT: answer EOS USER: ...

where the texts around messages are config.text.chat, each encoded on its own.
EOS ends whatever the model says; only its messages count.

Systems that see images otherwise than they draw them have `Features`: an image
that is given stands as its features alone, between newlines.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float32, Int32

from unifluid_jax.core.config import ChatConfig
from unifluid_jax.core.types import PAD
from unifluid_jax.data import transforms
from unifluid_jax.data.fields import (
  PIXELS,
  Example,
  Picture,
  Pixels,
  Shape,
)
from unifluid_jax.data.records import BadRecord, Turn

SPECIAL = ("bos", "eos", "newline", "boi", "eoi")  # tokens that rows need
# Places of codes and of features in `_Tokens.ids`.
_CODE, _FEATURE = -2, -3


class _Tokens(NamedTuple):
  """A stretch of a row."""

  ids: list[int]  # _CODE, _FEATURE where those of an image go
  counts: list[bool]  # whether the loss counts it


@dataclasses.dataclass(frozen=True)
class Features:
  """How images that are given, not learned, are seen."""

  count: int  # F, features of an image
  images: int  # at most, in a row
  size: int  # of their pixels
  fit: Literal["crop", "squash"]


@dataclasses.dataclass(frozen=True)
class Dialogue:
  """One row of T tokens, with the images whose codes it has places for.

  Parts of the row:
    ids: i32[T], PAD where a code or a feature goes or nothing stands.
    cell: i32[T], which of the row's M * N codes stands there; -1: none.
    target: bool[T], tokens that the loss counts.
    codes: i32[M, N] of its images in their order, read from a file, where
      those that the row lacks are 0; or encoded in the step from
      `codes.pixels`, f32[M, S, S, 3], where they are black.
    feature: i32[T], which of the features of the images given stands there;
      -1: none. With `seen` alone, as the next.
    views: f32[images, size, size, 3], the images given, in their order.

  What belongs to a turn that is a target counts: its tokens, what begins it
  (BOI, or the newline between two texts), and what begins the next turn or
  ends the row, which is how a text ends.

  Rows that are too long, or have too many images, lose whole turns, their last
  in training, their first in a prompt, and then have no EOS. A text is cut only
  where it alone is too long. A prompt that the user ends is followed by what
  begins an answer.
  """

  length: int  # T
  tokens: int  # N of an image
  size: int  # S
  fit: Literal["crop", "squash"]
  prompt: bool = False  # to be continued: aligned right, without EOS
  target: bool = False  # given as far as it goes
  seen: Features | None = None  # of images given; None: codes as all are
  most: int = 0  # images with codes; 0: as many as ever fit
  file: bool = False  # codes are read from the record

  def __post_init__(self):
    """Refuses rows without room for an image.

    Raises:
      ValueError: names text.dialogue.
    """
    least = self.tokens + 4  # BOS, BOI, EOI, EOS
    if self.length < least:
      raise ValueError(
        f"text.dialogue={self.length} has no room for an image of "
        f"{self.tokens} tokens and BOS, BOI, EOI, EOS: use >= {least}"
      )

  @property
  def images(self) -> int:
    """M, as many as ever fit, or at most `most`."""
    fit = (self.length - 1) // (self.tokens + 2)
    return min(fit, self.most) if self.most else fit

  @property
  def in_files(self) -> tuple[tuple[int | None, ...], ...]:
    """Codes of all `coded` images of a record; see `fields.Encoded`."""
    return ((None, self.tokens),)

  def as_prompt(self) -> "Dialogue":
    """See `fields.Continued`."""
    return dataclasses.replace(self, prompt=True, file=False)

  @property
  def which(self) -> str:
    """Images that are `coded`, in a word: files of others do not fit."""
    return "drawn" if self.seen else "all"

  def coded(self, turns: Sequence[Turn]) -> list[Turn]:
    """Those whose images have codes: files hold these, and no others."""
    return [t for t in turns if t.image is not None and not self._seen(t)]

  def shapes(self) -> dict[str, Shape]:
    """See `fields.Field`."""
    row, seen = Shape((self.length,), np.int32), self.seen
    parts = {"ids": row, "cell": row}
    parts["target"] = Shape((self.length,), np.bool_)
    if seen:
      parts["feature"] = row
    if self.file:
      parts["codes"] = Shape((self.images, self.tokens), np.int32)
    else:
      pixels = (self.images, self.size, self.size, 3)
      parts[f"codes.{PIXELS}"] = Shape(pixels, np.float32)
    if seen:
      views = (seen.images, seen.size, seen.size, 3)
      parts["views"] = Shape(views, np.float32)
    return parts

  def rows(
    self, example: Example, rng: np.random.Generator | None
  ) -> dict[str, np.ndarray]:
    """See `fields.Field`.

    Raises:
      BadRecord: a corrupt image; one that a row has no room for; or none of
        what is to be learned fits.
    """
    del rng
    tokenizer = example.tokenizer
    given = _with_system(example.turns, example.chat)
    reply = []
    if self.prompt and given and given[-1].role == "user":
      reply = tokenizer.encode(example.chat.assistant)
    room = self.length - 1 - len(reply)
    turns, made = self._kept(given, example, room)
    tokens = _joined(made)
    if len(tokens.ids) > room:  # one text alone
      if {_CODE, _FEATURE} & set(tokens.ids):
        # A part of an image is none, and what is cut off may be a target.
        raise BadRecord(
          f"text.dialogue={self.length} has no room for one of its images and "
          f"what belongs to it, {len(tokens.ids) + self.length - room} tokens"
        )
      ids = tokenizer.fit(tokens.ids, room)
      tokens = _Tokens(list(ids), tokens.counts[:room])
    learned = any(turn.target for turn in given)
    if learned and not self.prompt and not any(tokens.counts):
      raise BadRecord(
        f"nothing to learn is left of a dialogue of {len(given)} texts and "
        f"images, cut to fit text.dialogue={self.length} and as many images "
        "as a row has"
      )
    whole = len(turns) == len(given) and len(tokens.ids) < room
    if whole and not self.prompt and not _ends_message(turns[-1], None):
      end = _Tokens([tokenizer.special["eos"]], [turns[-1].target])
      tokens = _joined([tokens, end])
    start = _Tokens([tokenizer.special["bos"]], [False])
    made = self._arrays(_joined([start, tokens, _given(reply)]))
    drawn = self.coded(turns)
    shapes = {k: shape.shape for k, shape in self.shapes().items()}
    if self.file:
      made["codes"] = self._from_file(example, len(drawn))
    else:
      name, field = f"codes.{PIXELS}", Pixels("turn", self.size, self.fit)
      made[name] = _pixels(field, drawn, shapes[name], example)
    if self.seen:
      seen = [t for t in turns if self._seen(t)]
      field = Pixels("turn", self.seen.size, self.seen.fit)
      made["views"] = _pixels(field, seen, shapes["views"], example)
    return made

  def _from_file(
    self, example: Example, count: int
  ) -> Int32[np.ndarray, "M N"]:
    """The codes of the first images, those that are kept, then zeros.

    Raises:
      BadRecord: the file has others of this record.
    """
    found, need = np.asarray(example.codes), len(self.coded(example.turns))
    if found.shape != (need, self.tokens):
      raise BadRecord(
        f"its cached codes are {found.shape}, its images need "
        f"{(need, self.tokens)}: encode them anew"
      )
    codes = np.zeros((self.images, self.tokens), np.int32)
    codes[:count] = found[:count]
    return codes

  def _seen(self, turn: Turn) -> bool:
    """Whether it is an image that stands as its features."""
    drawn = turn.role == "assistant" if turn.role else turn.target
    return bool(self.seen) and turn.image is not None and not drawn

  def _kept(
    self, turns: Sequence[Turn], example: Example, room: int
  ) -> tuple[Sequence[Turn], list[_Tokens]]:
    """The whole turns that fit a row, and their tokens.

    The system's message always, of others one at least, if there is any. The
    first time that some are left out is logged.
    """
    made = self._tokens(turns, example)
    if self._fit(turns, made, room):
      return turns, made
    logging.log_first_n(
      logging.WARNING,
      "a dialogue of %d tokens and %d images was cut to whole texts and images "
      "that fit %d tokens and as many images as a row has, see text.dialogue "
      "and the model's images of a dialogue, if that is not rare (logged once)",
      1, sum(len(t.ids) for t in made),
      sum(turn.image is not None for turn in turns), room,
    )  # fmt: skip
    head = int(turns[0].role == "system")
    if not self.prompt:
      count = max(len(turns) - 1, min(head + 1, len(turns)))
      while count > head + 1 and not self._fit(
        turns[:count], made[:count], room
      ):
        count -= 1
      return turns[:count], made[:count]
    kept = turns
    for first in range(head + 1, len(turns)):
      kept = (*turns[:head], *turns[first:])
      made = self._tokens(kept, example)
      if self._fit(kept, made, room):
        break
    return kept, made

  def _fit(
    self, turns: Sequence[Turn], made: Sequence[_Tokens], room: int
  ) -> bool:
    """Whether a row has room for their tokens and for their images."""
    seen = sum(map(self._seen, turns))
    coded = sum(turn.image is not None for turn in turns) - seen
    return (
      sum(len(t.ids) for t in made) <= room
      and coded <= self.images
      and seen <= (self.seen.images if self.seen else 0)
    )

  def _tokens(self, turns: Sequence[Turn], example: Example) -> list[_Tokens]:
    """The tokens of each turn, with what begins it and what ends it."""
    tokenizer = example.tokenizer
    special, made = tokenizer.special, []
    before, ended = None, True  # `ended`: nothing is left open before
    for turn, after in zip(turns, (*turns[1:], None), strict=False):
      marker = []
      if turn.role and (before is None or before.role != turn.role):
        marker = tokenizer.encode(example.chat.begins(turn.role))
      follows = not ended and not marker
      after_text = follows and before.image is None
      if self._seen(turn):
        start = [special["newline"]] if after_text else []
        body = [_FEATURE] * self.seen.count
      elif turn.image is not None:
        start = [special["boi"]]
        body = [*[_CODE] * self.tokens, special["eoi"]]
      else:
        apart = after_text or (follows and self._seen(before))
        start = [special["newline"]] if apart else []
        body = list(tokenizer.encode(turn.text))
      begins = turn.target or (follows and before.target)
      ended = _ends_message(turn, after) and not (self.prompt and not after)
      body += [special["eos"]] if ended else []
      counts = [*[begins] * len(start), *[turn.target] * len(body)]
      made.append(_joined([_given(marker), _Tokens([*start, *body], counts)]))
      before = turn
    return made

  def _arrays(self, tokens: _Tokens) -> dict[str, np.ndarray]:
    """The row's tokens in its slots."""
    count = len(tokens.ids)
    start = self.length - count if self.prompt else 0
    slots = slice(start, start + count)
    found = np.asarray(tokens.ids, np.int32)
    ids = np.full(self.length, PAD, np.int32)
    ids[slots] = np.where(found < 0, PAD, found)
    target = np.zeros(self.length, bool)
    target[slots] = tokens.counts
    made = {"ids": ids, "cell": self._places(found == _CODE, slots)}
    made["target"] = target
    if self.seen:
      made["feature"] = self._places(found == _FEATURE, slots)
    return made

  def _places(
    self, here: Bool[np.ndarray, "n"], slots: slice
  ) -> Int32[np.ndarray, "T"]:
    """0, 1, ... where something goes, -1 elsewhere."""
    places = np.full(self.length, -1, np.int32)
    places[slots] = np.where(here, np.cumsum(here) - 1, -1)
    return places


def _pixels(
  field: Pixels, turns: Sequence[Turn], shape: tuple[int, ...],
  example: Example,
) -> Float32[np.ndarray, "M S S 3"]:  # fmt: skip
  """The images of turns, then zeros.

  Raises:
    BadRecord: a corrupt image.
  """
  pixels = np.zeros(shape, np.float32)
  for row, turn in zip(pixels, turns, strict=False):
    seen = example._replace(images={"turn": Picture((turn.image,))})
    row[:] = transforms.to_float(field.view(seen))
  return pixels


def _joined(tokens: Sequence[_Tokens]) -> _Tokens:
  """One after the other."""
  return _Tokens(
    [i for t in tokens for i in t.ids], [c for t in tokens for c in t.counts]
  )


def _given(ids: Sequence[int]) -> _Tokens:
  """Tokens that the loss does not count."""
  return _Tokens(list(ids), [False] * len(ids))


def _with_system(turns: Sequence[Turn], chat: ChatConfig) -> tuple[Turn, ...]:
  """The turns after the system's message, where a conversation has none."""
  if turns and turns[0].role in ("user", "assistant") and chat.system:
    return (Turn(chat.system, target=False, role="system"), *turns)
  return tuple(turns)


def _ends_message(turn: Turn, after: Turn | None) -> bool:
  """Whether a turn ends what the model says, which EOS then ends."""
  return turn.role == "assistant" and (
    after is None or after.role != "assistant"
  )
