"""From records to the arrays of a task, as UniFluid declares them."""

import functools
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from configs import debug
from tests import text_rows
from unifluid_jax import systems
from unifluid_jax.core.types import BOS, PAD
from unifluid_jax.data import fields, tasks, text, transforms
from unifluid_jax.data.records import BadRecord, Record

RNG = np.random.default_rng


def encode(image):
  file = io.BytesIO()
  Image.fromarray(image).save(file, "PNG")
  return file.getvalue()


def noise(height, width, seed=0):
  return RNG(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  words = ["a red circle", "two stars", "how many", "caption en", "make it"]
  path = tmp_path_factory.mktemp("t") / "t.model"
  return text.train(words * 9, path, 90)


@functools.cache
def inputs(system="unifluid", edit_latents=False, moments=""):
  """Fields whose images are 8 pixels wide, 6 for the vision encoder."""
  c = debug.get_config("vae" if system == "vae" else "")
  c.model.image_size = 8
  if system == "unifluid":
    c.model.vit.update(image_size=6, patch=3)
    c.model.patch, c.model.edit_latents = 2, edit_latents
    c.text.update(prompt=7, prefix=9, suffix=5)
    c.data.train.shapes.moments = moments
  return systems.build(systems.resolve(c)).inputs


@pytest.fixture(scope="module")
def draw(tokenizer):
  """(task, record, rng) → arrays of one example."""

  def call(task, record, rng, flip=False, **changes):
    options = tasks.Options(tokenizer, "caption en", flip)
    example = tasks.TASKS[task](record, rng, options)
    return fields.arrays(inputs(**changes)[task], example, rng)

  return call


def record(**parts):
  return Record("r", encode(noise(8, 8)), **parts)


def test_text_to_image(draw, tokenizer):
  both = record(prompts=("a red circle",), captions=("two stars",))
  example = draw("t2i", both, RNG(0))
  assert set(example) == {"prompt", "image.pixels"}
  row = text_rows.prompt(tokenizer, "a red circle", 7)
  np.testing.assert_array_equal(example["prompt"], row)
  np.testing.assert_array_equal(
    example["image.pixels"], transforms.to_float(noise(8, 8))
  )


def test_prompts_fall_back_to_captions(draw, tokenizer):
  example = draw("t2i", record(captions=("two stars",)), RNG(0))
  assert tokenizer.decode(example["prompt"]) == "two stars"


def test_cached_moments_replace_the_image(draw):
  shape = inputs(moments="m")["t2i"]["image"].shape
  moments = RNG(0).normal(size=shape).astype(np.float16)
  broken = Record("r", b"junk", prompts=("two stars",), moments=moments)
  example = draw("t2i", broken, RNG(0), moments="m")
  assert set(example) == {"prompt", "image"}
  assert example["image"].dtype == np.float32
  np.testing.assert_array_equal(example["image"], moments)


def test_flips_are_fair_and_mirror(draw):
  image = transforms.to_float(noise(8, 8))
  rng, flipped = RNG(0), 0
  for _ in range(200):
    example = draw("t2i", record(prompts=("two",)), rng, flip=True)
    got = example["image.pixels"]
    mirrored = np.array_equal(got, image[:, ::-1])
    assert mirrored or np.array_equal(got, image)
    flipped += mirrored
  assert 70 < flipped < 130


def test_images_to_draw_are_cropped_and_then_flipped(draw):
  """Of an odd margin the two orders take other columns."""
  wide = Record("r", encode(noise(8, 11)), prompts=("two",))
  square = transforms.centre_crop_resize(noise(8, 11), 8)
  seen = set()
  for seed in range(8):
    got = draw("t2i", wide, RNG(seed), flip=True)["image.pixels"]
    flip = np.array_equal(got, transforms.to_float(square[:, ::-1]))
    assert flip or np.array_equal(got, transforms.to_float(square))
    seen.add(flip)
  assert seen == {True, False}


def test_image_to_text_mixes_captions_and_questions(draw, tokenizer):
  both = record(captions=("a red circle",), questions=(("how many", "two"),))
  rng, captions = RNG(0), 0
  for _ in range(1500):
    example = draw("i2t", both, rng)
    question = tokenizer.decode(example["prefix"]).strip()
    answer = tokenizer.decode(example["suffix"])
    assert (question, answer) in {
      ("caption en", "a red circle"),
      ("how many", "two"),
    }
    captions += question == "caption en"
  assert 524 < captions < 676  # 2/5 of 1500, four standard errors
  assert example["seen"].shape == (6, 6, 3)
  assert example["prefix"].shape == (9,) and example["suffix"].shape == (5,)


def test_image_to_text_with_one_kind_of_text(draw, tokenizer):
  for texts, answer in (
    (dict(captions=("two stars",)), "two stars"),
    (dict(questions=(("how many", "two"),)), "two"),
  ):
    example = draw("i2t", record(**texts), RNG(1))
    assert tokenizer.decode(example["suffix"]) == answer


def test_edit(draw, tokenizer):
  target = noise(8, 8, seed=1)
  edit = record(edit=("make it red", encode(target)))
  plain = draw("edit", edit, RNG(0))
  assert set(plain) == {"seen", "prompt", "image.pixels"}
  assert plain["seen"].shape == (6, 6, 3)
  np.testing.assert_array_equal(
    plain["image.pixels"], transforms.to_float(target)
  )
  assert tokenizer.decode(plain["prompt"]) == "make it red"
  seen = set()
  for seed in range(8):
    got = draw("edit", edit, RNG(seed), flip=True, edit_latents=True)
    mirrored = not np.array_equal(got["image.pixels"], plain["image.pixels"])
    source = transforms.to_float(noise(8, 8))
    want = source[:, ::-1] if mirrored else source
    np.testing.assert_array_equal(got["source.pixels"], want)
    seen.add(mirrored)
  assert seen == {True, False}


def test_edits_are_flipped_and_then_cropped(draw):
  wide = noise(8, 11, seed=1)
  edit = record(edit=("make it red", encode(wide)))
  turned = np.ascontiguousarray(wide[:, ::-1])
  known = [transforms.centre_crop_resize(x, 8) for x in (wide, turned)]
  seen = set()
  for seed in range(8):
    got = draw("edit", edit, RNG(seed), flip=True)["image.pixels"]
    same = [np.array_equal(got, transforms.to_float(x)) for x in known]
    assert sum(same) == 1
    seen.add(same[1])
  assert seen == {True, False}


def test_text_only(draw, tokenizer):
  captioned = Record("r", b"", captions=("two stars",))
  caption = draw("text", captioned, RNG(0))
  assert set(caption) == {"prefix", "suffix"}
  assert caption["prefix"].tolist() == [PAD] * 8 + [BOS]
  assert tokenizer.decode(caption["suffix"]) == "two stars"
  asked = Record("r", b"", questions=(("how many", "two"),))
  answer = draw("text", asked, RNG(0))
  np.testing.assert_array_equal(
    answer["prefix"], text_rows.prefix(tokenizer, "how many", 9)
  )


def test_tokenizers_train_on_the_image_alone(draw):
  example = draw("image", record(), RNG(0), system="vae")
  assert set(example) == {"image"}
  np.testing.assert_array_equal(
    example["image"], transforms.to_float(noise(8, 8))
  )


@pytest.mark.parametrize(
  "task, blank",
  [
    ("t2i", dict(prompts=(" ",))),
    ("i2t", dict(captions=("",))),
    ("i2t", dict(questions=(("how many", " "),))),
    ("edit", dict(edit=("", encode(noise(8, 8))))),
    ("text", dict(captions=("\n",))),
  ],
)
def test_blank_texts_are_bad_and_absent_ones_no_example(draw, task, blank):
  with pytest.raises(BadRecord, match="blank"):
    draw(task, record(**blank), RNG(0))
  with pytest.raises(tasks.NoExample):
    draw(task, record(), RNG(0))


def test_blank_texts_are_passed_over(draw, tokenizer):
  some = record(prompts=("", "two stars", " "))
  for seed in range(5):
    example = draw("t2i", some, RNG(seed))
    assert tokenizer.decode(example["prompt"]) == "two stars"


@pytest.mark.parametrize(
  "changes", [{}, dict(edit_latents=True), dict(moments="m")]
)
def test_fields_declare_the_arrays_that_they_make(draw, changes):
  cached = inputs(**changes)["t2i"]["image"].shape
  full = record(
    captions=("two",), edit=("make it", encode(noise(9, 7))),
    moments=np.zeros(cached, np.float16),
  )  # fmt: skip
  for task, declared in inputs(**changes).items():
    made = draw(task, full, RNG(0), **changes)
    shapes = fields.shapes(declared)
    assert list(made) == list(shapes)
    for name, array in made.items():
      assert (array.shape, array.dtype) == shapes[name], name


def test_prompts_are_what_is_no_target():
  seen = {"seen": fields.Picture((b"", b""))}
  all_inputs = inputs(edit_latents=True)
  given = {t: set(fields.prompts(f, seen)) for t, f in all_inputs.items()}
  # A prompt may have another number of images than training has.
  assert fields.prompts(all_inputs["i2t"], seen)["seen"].frames == 2
  assert given == {
    "t2i": {"prompt"},
    "i2t": {"seen", "prefix"},
    "edit": {"seen", "prompt", "source"},
    "text": {"prefix"},
  }


def test_workers_unpickle_fields_without_an_accelerator_library():
  code = (
    "import pickle, sys; pickle.load(sys.stdin.buffer); "
    "sys.exit('jax' in sys.modules or 'flax' in sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    input=pickle.dumps(inputs(edit_latents=True)), check=False,
  )  # fmt: skip
  assert done.returncode == 0


def test_endings_are_drawn_in_training_and_the_first_in_prompts(tokenizer):
  """Text gives way to them, and they to nothing."""
  field = fields.Text("prompt", 6, ("bos",), endings=("two", "how many"))

  def said(text, rng=None):
    example = fields.Example({"prompt": text}, {}, tokenizer)
    return field.rows(example, rng)[""]

  assert tokenizer.decode(said("a red")) == "a red two"
  rng = RNG(0)
  drawn = [tokenizer.decode(said("a red", rng)) for _ in range(40)]
  assert 10 < drawn.count("a red how many") < 30
  assert set(drawn) == {"a red how many", "a red two"}
  ids = tokenizer.encode("a red circle a red circle")
  row = [BOS, *ids[:4], *tokenizer.encode("two")]
  np.testing.assert_array_equal(said("a red circle a red circle"), row)
  np.testing.assert_array_equal(said(None), [PAD] * 5 + [BOS])
  short = fields.Text("prompt", 2, ("bos",), ("eos",), endings=("two",))
  with pytest.raises(ValueError, match="BOS and EOS and 'two': use >= 3"):
    short.row(tokenizer, "a", "two")


def test_an_opening_stands_before_texts_alone(tokenizer):
  field = fields.Text("prefix", 6, ("bos",), ("eos",), opening=("newline",))
  bos, eos, newline = (tokenizer.special[k] for k in ("bos", "eos", "newline"))
  (two,) = tokenizer.encode("two")
  np.testing.assert_array_equal(
    field.row(tokenizer, "two"), [PAD, PAD, bos, newline, two, eos]
  )
  np.testing.assert_array_equal(field.row(tokenizer, None), [PAD] * 5 + [bos])
