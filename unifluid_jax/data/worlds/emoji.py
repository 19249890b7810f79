"""The emoji world: named pictures of several artists, and what is said of them.

A picture is a concept ("red apple") as one set of emoji draws it ("twemoji"),
with one of five skin tones where the concept has them. Everything here follows
from names alone; `emoji_packages` finds the drawings, `emoji_builder` writes
the data set. Every choice is a hash of names: it depends neither on the order
of pictures nor on a seed, and another choice of groups leaves it as it is.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

STYLES = ("twemoji", "noto", "fluent", "emojione", "openmoji")
GROUPS = (
  "smileys & emotion",
  "people & body",
  "animals & nature",
  "food & drink",
  "travel & places",
  "activities",
  "objects",
  "symbols",
  "flags",
)
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
KINDS = ("name", "style", "group", "tone", "yes/no")

_HELD_OUT = 0.25  # of the concepts lose one of their styles
_PROMPTS = (
  "{subject}, {style} style",
  "{subject} in {style} style",
  "a {style} emoji of {subject}",
  "draw {subject} in the style of {style}",
)
_QUESTIONS: Mapping[str, tuple[str, ...]] = {
  "name": ("what is this", "what does the picture show", "name it"),
  "style": ("which style is it", "who drew it like this", "name the style"),
  "group": ("which group is it", "what kind of thing is it"),
  "tone": ("which skin tone", "what is the skin tone"),
  "yes/no": ("is it {thing}", "is this {thing}"),
}
_INSTRUCTIONS: Mapping[str, tuple[str, ...]] = {
  "style": (
    "redraw in {style} style",
    "make it {style} style",
    "the same in {style} style",
  ),
  "tone": (
    "make the skin tone {tone}",
    "change the skin tone to {tone}",
    "{tone} skin tone",
  ),
}


class Picture(NamedTuple):
  """What an emoji shows, and who drew it; a record's `scene`."""

  concept: str  # its Unicode name in lower case, apostrophes plain: "red apple"
  style: str  # one of STYLES
  group: str  # one of GROUPS
  tone: str | None = None  # one of TONES; None: the concept's own picture

  @property
  def subject(self) -> str:
    """The concept and its skin tone: "waving hand, dark skin tone"."""
    return subject(self.concept, self.tone)


class Question(NamedTuple):
  """A question about a picture; `kind` is one of KINDS, or "description"."""

  question: str
  answer: str
  kind: str


class Edit(NamedTuple):
  """An instruction and the picture it leads to."""

  instruction: str
  target: Picture


class Splits(NamedTuple):
  """Which pictures are trained on.

  Training pictures are in the order of their names, the others in an order of
  chance: the first few are a fair sample.
  """

  train: tuple[Picture, ...]
  validation: tuple[Picture, ...]  # of those that are trained on
  held_out: tuple[Picture, ...]  # of (concept, style) never trained on


def picture_to_json(picture: Picture) -> str:
  """As records carry it."""
  return json.dumps(picture._asdict())


def picture_from_json(text: str) -> Picture:
  """The inverse of `picture_to_json`.

  Raises:
    ValueError: the text is no picture.
  """
  try:
    return Picture(**json.loads(text))
  except (TypeError, ValueError) as error:
    raise ValueError(f"{text!r} is no picture of the emoji world") from error


def subject(concept: str, tone: str | None) -> str:
  """What is shown, in words."""
  return f"{concept}, {tone} skin tone" if tone else concept


def caption(picture: Picture) -> str:
  """The one caption of a picture, which is its plain prompt too."""
  return _PROMPTS[0].format(subject=picture.subject, style=picture.style)


def prompts(picture: Picture, split: str, ground: str = "") -> list[str]:
  """Texts to draw it from.

  Args:
    picture: what they describe.
    split: "train" has all wordings, the others the plain one alone.
    ground: name of its colour where it is not white.
  """
  wordings = _PROMPTS if split == "train" else _PROMPTS[:1]
  words = {"subject": picture.subject, "style": picture.style}
  tail = f" on {ground}" if ground else ""
  return [wording.format(**words) + tail for wording in wordings]


def questions(
  picture: Picture,
  others: Sequence[Picture],
  split: str,
  rng: np.random.Generator,
) -> list[Question]:
  """What can be asked of a picture, in the order of KINDS.

  A caption is scored against one reference and has one form; its other forms
  are answers to "describe it", in training.

  Args:
    picture: what is asked about.
    others: pictures whose concepts serve as wrong ones: those of its group
      first, if there are any.
    split: "train" is reworded and has one yes and one no, the others have one
      of the two.
    rng: of this record.
  """
  train = split == "train"
  answers = {
    "name": picture.concept,
    "style": picture.style,
    "group": picture.group,
    "tone": picture.tone,
  }
  found = [
    Question(_worded(_QUESTIONS[kind], train, rng), answer, kind)
    for kind, answer in answers.items()
    if answer
  ]
  for yes in (True, False) if train else (bool(rng.integers(2)),):
    thing = picture.concept if yes else _wrong(picture, others, rng)
    asked = _worded(_QUESTIONS["yes/no"], train, rng).format(thing=thing)
    found.append(Question(asked, "yes" if yes else "no", "yes/no"))
  if train:
    form = _PROMPTS[1 + int(rng.integers(len(_PROMPTS) - 1))]
    text = form.format(subject=picture.subject, style=picture.style)
    found.append(Question("describe it", text, "description"))
  return found


def edits(picture: Picture, others: Iterable[Picture]) -> list[Picture]:
  """The pictures that one instruction leads to: another style, another tone.

  Args:
    picture: the source.
    others: pictures that exist; those of other concepts are passed over.
  """

  def changed(other: Picture) -> int:
    return (other.style != picture.style) + (other.tone != picture.tone)

  # No instruction takes a tone away.
  return [
    other
    for other in others
    if other.concept == picture.concept
    and changed(other) == 1
    and (other.tone or not picture.tone)
  ]


def edit(
  picture: Picture, target: Picture, split: str, rng: np.random.Generator
) -> Edit:
  """The instruction that makes `target` of `picture`.

  Args:
    picture: the source.
    target: one of `edits`.
    split: "train" is reworded, the others are plain.
    rng: chooses the wording.
  """
  kind = "style" if picture.style != target.style else "tone"
  wording = _worded(_INSTRUCTIONS[kind], split == "train", rng)
  return Edit(wording.format(style=target.style, tone=target.tone), target)


def held_out(styles: Mapping[str, Iterable[str]]) -> set[tuple[str, str]]:
  """(concept, style) pairs that are never trained on.

  One style of a quarter of the concepts, among those that have several. The
  style is the one whose hash with the concept is lowest: without an unrelated
  set, or with one more, most pairs stay the same.

  Args:
    styles: concept → styles that draw it.
  """
  pairs = set()
  for concept, drawn in styles.items():
    found = sorted(set(drawn), key=lambda style: chance(concept, style))
    if len(found) > 1 and chance("held out", concept) < _HELD_OUT:
      pairs.add((concept, found[0]))
  return pairs


def split(pictures: Iterable[Picture], validation: int) -> Splits:
  """Pictures to train on, a sample of them, and those held out.

  Args:
    pictures: all there are.
    validation: size of the sample; fewer where there are not as many.
  """
  ordered = sorted(set(pictures), key=lambda p: p._replace(tone=p.tone or ""))
  styles: dict[str, list[str]] = {}
  for picture in ordered:
    styles.setdefault(picture.concept, []).append(picture.style)
  kept = held_out(styles)
  train = [p for p in ordered if (p.concept, p.style) not in kept]
  unseen = [p for p in ordered if (p.concept, p.style) in kept]

  def by_chance(picture: Picture) -> float:
    return chance("order", *picture)

  sample = sorted(train, key=by_chance)[:validation]
  return Splits(
    tuple(train), tuple(sample), tuple(sorted(unseen, key=by_chance))
  )


def chance(*words: str | None) -> float:
  """A number in [0, 1) that follows from the words, the same everywhere."""
  data = json.dumps(words).encode()
  return int.from_bytes(hashlib.sha256(data).digest()[:6]) / 2**48


def rng_of(seed: int, *words: str | int | None) -> np.random.Generator:
  """Random numbers of a record, by its names."""
  data = json.dumps(words).encode()
  return np.random.default_rng([seed, *hashlib.sha256(data).digest()[:8]])


def _worded(
  forms: Sequence[str], reworded: bool, rng: np.random.Generator
) -> str:
  """The plain form, or any."""
  return forms[int(rng.integers(len(forms)))] if reworded else forms[0]


def _wrong(
  picture: Picture, others: Sequence[Picture], rng: np.random.Generator
) -> str:
  """A concept that the picture does not show, of its group where it can be."""
  wrong = [p for p in others if p.concept != picture.concept]
  near = [p for p in wrong if p.group == picture.group] or wrong
  if not near:
    raise ValueError(
      f"data.world: {picture.concept!r} is the only concept, and yes/no "
      "questions need two: choose more groups"
    )
  return near[int(rng.integers(len(near)))].concept
