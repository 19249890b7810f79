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
  with pytest.raises(ValueError, match="cannot draw cells again"):
    drawings.redraw("a", 0, image, AGAIN, config.sampling)
