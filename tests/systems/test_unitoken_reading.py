"""What UniToken sees of a scene in each row of the experiment on reading."""

import jax
import jax.numpy as jnp
import pytest

from configs import unitoken_shapes
from unifluid_jax import systems
from unifluid_jax.data import fields
from unifluid_jax.evals.published.sibling_tables import STUDIES

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


def flat(node, key=""):
  if not isinstance(node, dict):
    return {key: node}
  return {
    k: v for n, x in node.items() for k, v in flat(x, f"{key}/{n}").items()
  }


def test_arms_differ_in_what_is_seen_and_in_the_encoder_alone():
  arms = {
    arm.name.rpartition("reading_")[2]: arm
    for arm in STUDIES["unitoken_reading"].arms
  }
  trees = {
    name: flat(unitoken_shapes.get_config(arm.argument).to_dict())
    for name, arm in arms.items()
  }

  def other(a, b):
    keys = trees[a].keys() | trees[b].keys()
    return {k for k in keys if trees[a].get(k) != trees[b].get(k)} - {"/name"}

  assert other("grid", "start") == set()
  assert other("grid", "base") == {"/model/pinpoints"}
  assert other("grid", "discrete") == {
    "/model/continuous", "/optim/rates/vit", "/optim/rates/projector"
  }  # fmt: skip
  for seen in ("grid", "base"):
    tuned, frozen = arms[seen], arms[f"{seen}_frozen"]
    assert frozen.argument == tuned.argument
    assert set(frozen.flags) - set(tuned.flags) == {
      "--config.optim.rates.vit=0"
    }
    assert tuned.follows == frozen.follows == arms["start"].name
  # Of the run on shapes alone, the encoder is all that is taken.
  new = {f"--config.init.{part}=new" for part in ("decoder", "projector")}
  assert set(arms["grid"].flags) == set(arms["base"].flags) == new
  assert not arms["discrete"].follows and not arms["discrete"].flags
