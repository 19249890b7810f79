"""What `api.Model` makes of pictures while they appear, and of parts."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import debug
from tests.test_api import Blank
from unifluid_jax import api, systems
from unifluid_jax.drawings import Drawings

AGAIN = np.zeros((2, 2), bool)
AGAIN[1] = True


@pytest.fixture(scope="module")
def model():
  """UniFluid without its networks: it draws the seed, and says what it got."""
  config = systems.resolve(debug.get_config())
  system = systems.build(config)

  def redraw(params, frozen, prompts, keys, sampling, given, again):
    seen = jnp.stack([given[:, 0, 0, 0], again.sum(1) / 255 * 2 - 1])
    return jnp.broadcast_to(seen.T[:, :1, None, None], given.shape) * -1

  def stages(params, frozen, prompts, keys, sampling, most):
    steps = jnp.linspace(-1, 1, most)[None, :, None, None, None]
    return jnp.broadcast_to(steps, (len(keys), most, 32, 32, 3))

  system.redraw, system.stages = redraw, stages
  return api.Model(config, system, Blank(), api.jitted({}, {}, 4))


def test_cells_that_stay_are_returned_as_they_are(model):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (32, 32, 3), np.uint8)
  image[0, 0] = 55
  out = np.asarray(model.generate("a", given=image, redraw=AGAIN))
  np.testing.assert_array_equal(out[:16], image[:16])
  assert (out[16:] == 200).all()  # 255 - 55


def test_a_picture_of_any_shape_is_cropped_as_training_crops(model):
  wide = Image.new("RGB", (130, 64), "red")
  out = np.asarray(model.generate("a", given=wide, redraw=AGAIN))
  assert out.shape == (32, 32, 3) and (out[:16] == [255, 0, 0]).all()


def test_several_prompts_share_an_image_or_have_one_each(model):
  images = [np.full((32, 32, 3), x, np.uint8) for x in (10, 20, 30)]
  out = model.generate(["a", "b", "c"], given=images, redraw=AGAIN)
  corners = [np.asarray(x)[[0, 31], 0, 0].tolist() for x in out]
  assert corners == [[10, 245], [20, 235], [30, 225]]
  out = model.generate(["a", "b"], given=images[2], redraw=AGAIN)
  assert [np.asarray(x)[31, 0, 0] for x in out] == [225, 225]
  assert model.generate([], given=images[2], redraw=AGAIN) == []
  with pytest.raises(ValueError, match="3 given images for 2 prompts"):
    model.generate(["a", "b"], given=images, redraw=AGAIN)


@pytest.mark.parametrize(
  "box, cells",
  [
    ((0, 16, 32, 32), [[0, 0], [1, 1]]),
    ((0, 0, 16, 16), [[1, 0], [0, 0]]),
    ((15.5, 31, 16.5, 32), [[0, 0], [1, 1]]),
    ((16, 0, 17, 32), [[0, 1], [0, 1]]),
  ],
)
def test_a_box_is_the_cells_that_it_touches(model, box, cells):
  found = model.drawings.cells_of(box, model.config.sampling)
  np.testing.assert_array_equal(found, cells)
  if cells == AGAIN.tolist():
    image = np.full((32, 32, 3), 10, np.uint8)
    out = [model.generate("a", given=image, redraw=x) for x in (box, AGAIN)]
    assert np.array_equal(*out) and np.asarray(out[0])[31, 0, 0] == 245


def test_stages_are_pictures_the_last_of_them_whole(model):
  found = model.stages("a", seed=3, most=4)
  assert [np.asarray(x)[0, 0, 0] for x in found] == [0, 85, 170, 255]


@pytest.mark.parametrize(
  "options, words",
  [
    ({"given": None, "redraw": AGAIN}, "given and redraw belong together"),
    ({"redraw": None}, "given and redraw belong together"),
    ({"redraw": AGAIN[:1]}, r"redraw is bool\[1, 2\]: give bool\[2, 2\]"),
    ({"redraw": AGAIN.astype(int)}, r"redraw is int64\[2, 2\]"),
    ({"redraw": ~AGAIN}, "raster order"),
    ({"redraw": AGAIN & False}, "no cell is chosen"),
    ({"redraw": (0, 0, 40, 8)}, "redraw=0,0,40,8: give left < right and"),
    ({"redraw": (8, 0, 8, 8)}, "the drawing's width 32 and height 32"),
    ({"redraw": (0, 0, 8)}, r"redraw=\(0, 0, 8\): give left, top, right"),
    ({"seed": -1}, "seed=-1"),
    ({"cgf": 1}, "unknown sampling option"),
  ],
)
def test_what_cannot_be_drawn_again_is_refused(model, options, words):
  given = {"given": Image.new("RGB", (32, 32)), "redraw": AGAIN} | options
  with pytest.raises(ValueError, match=words):
    model.generate("a", **given)
  with pytest.raises(ValueError, match="text is empty"):
    model.generate(" ", given=given["given"], redraw=AGAIN)


def test_other_systems_say_that_they_cannot(model):
  config = model.config
  drawings = Drawings(
    config, object(), lambda *_: {}, lambda function: function
  )
  assert drawings.grid is None and not drawings.shows_stages
  with pytest.raises(ValueError, match="does not show how an image appears"):
    drawings.stages("a", 0, 4, config.sampling)
  image = np.zeros((8, 8, 3), np.uint8)
  with pytest.raises(
    ValueError, match="no cells that it can draw again: leave"
  ):
    drawings.redraw(["a"], 0, image, AGAIN, config.sampling)
