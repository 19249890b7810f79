"""Which images of training are augmented, and which are not."""

import dataclasses

import numpy as np
import pytest

from configs import emoji
from unifluid_jax import systems
from unifluid_jax.core import ranges
from unifluid_jax.core.config import AugmentConfig
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.data import fields, pipeline, tasks, transforms
from unifluid_jax.data.images import encode_image
from unifluid_jax.data.records import Marks, Record

RNG = np.random.default_rng
IMAGE = RNG(0).integers(0, 256, (16, 16, 3), np.uint8)
RECORD = Record(
  "0", encode_image(IMAGE), prompts=("p",), captions=("c",),
  edit=("e", encode_image(IMAGE)), more=(encode_image(IMAGE),),
)  # fmt: skip
CONFIG = AugmentConfig(shift=0.2, scale=0.2, colour=0.2, mirror=True)


def seen(task, config, seed=0, record=RECORD, role="seen"):
  options = tasks.Options(None, "caption", augment=config)
  picture = tasks.TASKS[task](record, RNG(seed), options).images[role]
  field = fields.Pixels(role, 16, "squash", frames=len(picture.frames))
  return field.view(fields.Example({}, {role: picture}))


def test_images_that_are_read_vary_each_for_itself():
  first, second = seen("i2t", CONFIG)
  again = seen("i2t", CONFIG)
  np.testing.assert_array_equal(first, again[0])
  for other in (IMAGE, second, seen("i2t", CONFIG, seed=1)[0]):
    assert np.abs(first.astype(int) - other).mean() > 5
  wanted = transforms.augmented(IMAGE, CONFIG, RNG(0))  # nothing drawn before
  np.testing.assert_array_equal(first, wanted)


def test_images_that_are_drawn_or_edited_stay_as_they_are():
  """Their targets would have to vary with them."""
  for task, role in (("t2i", "drawn"), ("edit", "seen"), ("edit", "drawn")):
    got = seen(task, CONFIG, role=role)
    np.testing.assert_array_equal(got, IMAGE)


def test_without_augmentation_nothing_is_drawn_or_decoded():
  options = tasks.Options(None, "caption")
  rng = RNG(0)
  example = tasks.image_to_text(RECORD, rng, options)
  assert example.images["seen"].frames == (RECORD.image, *RECORD.more)
  assert rng.random() == RNG(0).random()


def test_marked_images_are_refused():
  marked = RECORD._replace(marks=Marks(box=(0.1, 0.1, 0.5, 0.5)))
  with pytest.raises(ValueError, match="would stay where they are"):
    seen("i2t", CONFIG, record=marked)


@pytest.mark.parametrize("system", ["", "liquid"])
def test_encoded_images_cannot_be_augmented(system, tmp_path):
  """Those of t2i alone do not care; systems that read codes encode again."""

  def load(change):
    tree = emoji.get_config(f"full,{system}".strip(","))
    tree.data.root = str(tmp_path)
    change(tree)
    config = systems.resolve(tree)
    tokenizer = object()  # is not asked
    pipeline.make_loader(config, systems.build(config).inputs, tokenizer)

  def reads_files(tree):
    tree.data.train.emoji.tasks = ("t2i", "i2t")

  def varies_nothing(tree):
    reads_files(tree)
    tree.data.augment = dataclasses.asdict(AugmentConfig())

  with pytest.raises(FileNotFoundError):  # it was allowed, and has no data
    load(lambda tree: None)
  with pytest.raises(FileNotFoundError):
    load(varies_nothing)
  wanted = ValueError if system else FileNotFoundError
  with pytest.raises(
    wanted, match=r"augment changes" if system else "no data at"
  ):
    load(reads_files)


def test_the_range_of_each_number():
  config = systems.resolve(emoji.get_config("full"))
  assert config.data.augment.changes
  wrong = dataclasses.replace(config.data.augment, scale=1.0)
  data = dataclasses.replace(config.data, augment=wrong)
  with pytest.raises(ConfigError, match="data.augment.scale=1.0 must be in"):
    ranges.check(dataclasses.replace(config, data=data))
