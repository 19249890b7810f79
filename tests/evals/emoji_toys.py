"""A toy of the emoji world: coloured discs, squares, bars of three artists."""

import dataclasses

import numpy as np

from tests.systems.conftest import tiny
from unifluid_jax.data.images import decode_image, encode_image
from unifluid_jax.data.records import Record
from unifluid_jax.data.sources import source as sources
from unifluid_jax.data.worlds.emoji import Picture, picture_to_json
from unifluid_jax.evals.bench import Bench

SIDE = 32
COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220), "green": (30, 160, 60)}
SHAPES = ("disc", "square", "bar")
STYLES = ("twemoji", "noto", "fluent")
CONCEPTS = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
HELD_OUT = [Picture("red disc", "noto", "round"),
            Picture("blue bar", "twemoji", "angular"),
            Picture("green square", "fluent", "angular")]  # fmt: skip


def pictures():
  return [
    Picture(c, s, "round" if "disc" in c else "angular")
    for c in CONCEPTS
    for s in STYLES
  ]


def draw(picture):
  """Plain; outlined in black; or striped, each at a size of its own."""
  colour, shape = picture.concept.split()
  y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
  r = {"twemoji": 9, "noto": 12, "fluent": 14}[picture.style]
  far = {"disc": np.hypot(x, y), "square": np.maximum(abs(x), abs(y)),
         "bar": np.maximum(abs(x), 3 * abs(y))}[shape]  # fmt: skip
  image = np.full((SIDE, SIDE, 3), 255, np.uint8)
  image[far < r] = COLOURS[colour]
  if picture.style == "noto":
    image[(far < r) & (far > r - 3)] = 0
  if picture.style == "fluent":
    image[(far < r) & (np.arange(SIDE) % 4 < 2)] //= 2
  return image


def caption(picture):
  return f"{picture.concept}, {picture.style} style"


def record(picture, split):
  """As the data set's reader gives it; edits lead to another style."""
  other = STYLES[(STYLES.index(picture.style) + 1) % len(STYLES)]
  after = picture._replace(style=other)
  wrong = CONCEPTS[CONCEPTS.index(picture.concept) - 1]
  asked = [
    ("what is this", picture.concept, "name"),
    ("which style is it", picture.style, "style"),
    (f"is it {picture.concept}", "yes", "yes/no"),
    (f"is it {wrong}", "no", "yes/no"),
  ]
  return Record(
    f"{split}/{caption(picture)}",
    encode_image(draw(picture)),
    prompts=(caption(picture),),
    captions=(caption(picture),),
    questions=tuple(a[:2] for a in asked),
    kinds=tuple(a[2] for a in asked),
    edit=(f"redraw in {other} style", encode_image(draw(after))),
    scene=picture_to_json(picture),
    edit_scene=picture_to_json(after),
  )


def records():
  """Split → records."""
  train = [p for p in pictures() if p not in HELD_OUT]
  return {
    "train": [record(p, "train") for p in train],
    "validation": [record(p, "validation") for p in train[::3]],
    "held_out": [record(p, "held_out") for p in HELD_OUT],
  }


def bench_of(root, monkeypatch, found):
  """A bench whose sources hold these records."""
  monkeypatch.setattr(
    sources,
    "open_source",
    lambda config, *_, **__: found[config.split],
  )
  config = tiny(eval__seed=1)
  source = next(iter(config.data.train.values()))
  data = dataclasses.replace(
    config.data,
    root=str(root),
    train={"emoji": source},
    eval={
      split: dataclasses.replace(source, split=split)
      for split in ("validation", "held_out")
    },
    world={},
  )
  evaluation = dataclasses.replace(config.eval, split="validation", examples=99)
  return Bench(dataclasses.replace(config, data=data, eval=evaluation), "")


class Knowing:
  """Says and draws what is true of all splits."""

  def __init__(self, found):
    self.records = [r for rows in found.values() for r in rows]

  def answers(self, images, questions):
    by_image = {decoded(r.image).tobytes(): r for r in self.records}
    said = []
    for image, question in zip(images, questions, strict=True):
      r = by_image[image.tobytes()]
      said.append(dict(r.questions).get(question, r.captions[0]))
    return said

  def images(self, prompts, seeds):
    assert seeds == range(10**6, 10**6 + len(prompts))
    known = {r.prompts[0]: r for r in self.records}
    return np.stack([decoded(known[p].image) for p in prompts])

  def edits(self, images, instructions, seeds):
    assert seeds == range(10**6, 10**6 + len(images))
    known = {(decoded(r.image).tobytes(), r.edit[0]): r for r in self.records}
    return np.stack(
      [
        decoded(known[x.tobytes(), text].edit[1])
        for x, text in zip(images, instructions, strict=True)
      ]
    )

  def look(self, *_):
    raise AssertionError("not asked for")

  reconstruct = look


class Silent:
  """Says nothing and draws a grey plane."""

  def answers(self, images, questions):
    return [""] * len(images)

  def images(self, prompts, seeds):
    return np.full((len(prompts), SIDE, SIDE, 3), 128, np.uint8)

  def edits(self, images, instructions, seeds):
    return self.images(images, seeds)

  look = reconstruct = Knowing.look


def decoded(data):
  return decode_image(data)
