"""What UniToken sees of a scene in each row of the experiment on reading."""

import jax
import jax.numpy as jnp
import pytest

from configs import unitoken_shapes
from unifluid_jax import systems
from unifluid_jax.data import fields

# bos; soi, two sizes, 8 rows of 8 codes each with a new line, eoi; question.
CODES, QUESTION = 1 + 3 + 8 * 9 + 1, 15
BASE = 16  # 4 x 4 features
GRID = 8 * (8 + 1)  # two by two views of them, and new lines


@pytest.mark.parametrize(
  "argument, length, views",
  [
    ("reading,discrete", CODES + QUESTION, 0),
    ("reading,base", CODES + 1 + BASE + QUESTION, 1),
    ("reading", CODES + 1 + BASE + GRID + QUESTION, 5),
    ("base,reading", CODES + 1 + BASE + QUESTION, 1),
  ],
)
def test_codes_alone_the_base_view_and_the_grid(argument, length, views):
  system = systems.build(systems.resolve(unitoken_shapes.get_config(argument)))
  shapes = fields.shapes(system.inputs["i2t"])
  batch = {
    name: jax.ShapeDtypeStruct((2, *x.shape), x.dtype)
    for name, x in shapes.items()
    if name != "suffix"
  }
  rows = jax.eval_shape(system.asked, systems.init_shapes(system), batch)
  assert rows.x.shape == (2, length, 128)
  seen = shapes.get("seen.views")
  assert views == (0 if seen is None else seen.shape[0])
  # Codes of both sources are read from files.
  assert shapes["codes"] == ((64,), jnp.int32)
