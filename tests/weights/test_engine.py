import numpy as np
import pytest

from tests.weights import helpers
from unifluid_jax.weights import axes, engine
from unifluid_jax.weights.rows import (
  Drop,
  Recipe,
  Row,
  WeightsError,
  all_or_nothing,
)

X = np.arange(24, dtype=np.float32)


@pytest.mark.parametrize(
  "line, x, want",
  [
    ("d f", X.reshape(4, 6), X.reshape(4, 6)),
    ("f d -> d f", X.reshape(4, 6), X.reshape(4, 6).T),
    (
      "(n h) d -> d n h",
      X.reshape(6, 4),
      X.reshape(2, 3, 4).transpose(2, 0, 1),
    ),
    ("1 p d -> p d", X.reshape(1, 6, 4), X.reshape(6, 4)),
    ("o i 1 1 -> i o", X.reshape(6, 4, 1, 1), X.reshape(6, 4).T),
    ("[1/3] a b -> b a", X.reshape(3, 2, 4), X.reshape(3, 2, 4)[1].T),
    ("l [0/2] k -> l k", X.reshape(3, 2, 4), X.reshape(3, 2, 4)[:, 0]),
  ],
)
def test_axes_move(line, x, want):
  move = axes.parse(line)
  sizes = move.sizes_of(want.shape)
  assert move.source_shape(sizes) == x.shape
  np.testing.assert_array_equal(move.forward(x, sizes), want)
  if "/" not in line:
    np.testing.assert_array_equal(move.backward(want, sizes), x)


@pytest.mark.parametrize("line", ["a b -> a", "a a", "a - b -> b a"])
def test_axes_refuse_what_loses_numbers(line):
  with pytest.raises(ValueError, match="same axes|notation"):
    axes.parse(line)


def test_an_entry_is_not_written_back():
  with pytest.raises(ValueError, match="alone"):
    axes.parse("[0/2] a -> a").backward(X[:3], {"a": 3})


def recipe(**changes):
  made = dict(
    kind="toy",
    found="toy",
    rows=[
      Row("embed", "net/table", "v+ d"),
      Row("layers.{i}.up", "net/layers/up", "f d -> d f"),
      Row("block{j}.bias", "net/block_{j}/bias", "d"),
    ],
    like={
      "net/table": (5, 2),
      "net/layers/up": (3, 2, 4),
      "net/block_0/bias": (2,),
      "net/block_1/bias": (2,),
    },
    drops=[Drop("*.count", "not needed")],
  )
  return Recipe(**(made | changes))


def tensors():
  rng = np.random.default_rng(0)
  out = {
    "embed": rng.normal(size=(7, 2)), "block0.bias": rng.normal(size=2),
    "block1.bias": rng.normal(size=2), "a.count": np.zeros(()),
    **{f"layers.{i}.up": rng.normal(size=(4, 2)) for i in range(3)},
  }  # fmt: skip
  return {name: x.astype(np.float32) for name, x in out.items()}


def test_numbers_arrive(monkeypatch):
  theirs = tensors()
  want = {
    "net/table": theirs["embed"][:5],
    "net/layers/up": np.stack([theirs[f"layers.{i}.up"].T for i in range(3)]),
    "net/block_0/bias": theirs["block0.bias"],
    "net/block_1/bias": theirs["block1.bias"],
  }
  for block in (engine.BLOCK, 1):  # one row at a time
    monkeypatch.setattr(engine, "BLOCK", block)
    got = helpers.in_memory(helpers.Tensors(theirs), recipe())
    assert got.keys() == want.keys()
    for path in want:
      np.testing.assert_array_equal(got[path], want[path])


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("name", ["embed", "layers.1.up"])
def test_numbers_are_finite(name, bad):
  """In a tensor that streams and in one that does not."""
  theirs = tensors()
  theirs[name][1, 1] = bad
  with pytest.raises(WeightsError, match=f"{name}: expected finite .* found 1"):
    helpers.in_memory(helpers.Tensors(theirs), recipe())


def test_a_sum_may_overflow():
  theirs = tensors()
  theirs["embed"][:5] = 3e38
  got = helpers.in_memory(helpers.Tensors(theirs), recipe())
  np.testing.assert_array_equal(got["net/table"], theirs["embed"][:5])


def test_coverage_tells_all():
  plan = engine.make_plan(helpers.Tensors(tensors()), recipe())
  text = "\n".join(engine.coverage(plan))
  assert "layers.{i}.up" in text and "x3" in text
  assert "dropped: a.count: not needed" in text
  assert "embed[5:7]: unused rows" in text
  assert "6 tensors read, 1 dropped, none left over" in text
  assert "4 arrays, 38 parameters" in text


def test_dtype_is_kept_or_changed():
  theirs = tensors()
  theirs["layers.0.up"] = theirs["layers.0.up"].astype(np.float16)
  theirs["block0.bias"] = theirs["block0.bias"].astype(np.float16)
  source = helpers.Tensors(theirs)
  plan = engine.make_plan(source, recipe())
  assert plan.leaves["net/block_0/bias"].dtype == np.float16
  assert plan.leaves["net/layers/up"].dtype == np.float32  # the widest
  plan = engine.make_plan(source, recipe(), np.float32)
  assert plan.leaves["net/block_0/bias"].dtype == np.float32


def change(name, value):
  def apply(theirs):
    theirs[name] = value

  return apply


@pytest.mark.parametrize(
  "mutate, message",
  [
    (lambda t: t.pop("layers.1.up"), "layers.1.up: missing, net/layers/up"),
    (lambda t: t.pop("embed"), r"net/table \(5, 2\): missing, expected from"),
    (change("other", X), r"other \(24,\): unknown tensor"),
    (
      change("layers.2.up", np.zeros((4, 3))),
      r"layers.2.up: expected \(4, 2\) \(f d\), found \(4, 3\)",
    ),
    (change("layers.3.up", np.zeros((4, 2))), "3 layers, found layer 3"),
    (change("block2.bias", X[:2]), "block2.bias .* no place for net/block_2"),
    (change("embed", np.zeros((4, 2))), r"expected \(5, 2\) .*found \(4, 2\)"),
    (change("embed", np.zeros(5)), r"expected \(5, 2\) .*found \(5,\)"),
    (
      change("layers.1.up", np.zeros((4, 2), np.int8)),
      "layers.1.up: expected floating-point numbers, found int8.*unquantised",
    ),
    (change("embed", np.zeros((7, 2), bool)), "embed: expected .*found bool"),
  ],
)
def test_what_does_not_fit_is_named_in_one_line(mutate, message):
  theirs = tensors()
  mutate(theirs)
  with pytest.raises(WeightsError, match=message) as error:
    engine.make_plan(helpers.Tensors(theirs, "file.x"), recipe())
  assert "\n" not in str(error.value)
  assert str(error.value).startswith("file.x is not a whole toy")


def test_two_sources_of_one_target():
  rows = [*recipe().rows, Row("again", "net/table", "v d")]
  theirs = tensors() | {"again": np.zeros((5, 2))}
  with pytest.raises(WeightsError, match="twice, by embed and again"):
    engine.make_plan(helpers.Tensors(theirs), recipe(rows=rows))


def test_only_some_problems_are_shown():
  theirs = tensors() | {f"other{i}": X for i in range(9)}
  with pytest.raises(WeightsError, match="9 problems.*and 4 more"):
    engine.make_plan(helpers.Tensors(theirs), recipe())


def test_a_drop_goes_before_a_row():
  theirs = tensors() | {"layers.3.up": np.zeros((4, 2))}
  drops = [*recipe().drops, Drop("layers.3.*", "behind the output")]
  plan = engine.make_plan(helpers.Tensors(theirs), recipe(drops=drops))
  assert ("layers.3.up", "behind the output") in plan.dropped


def test_a_tied_copy_must_be_one():
  theirs = tensors()
  drops = [*recipe().drops, Drop("head", "tied", same_as="embed")]
  theirs["head"] = theirs["embed"].copy()
  engine.make_plan(helpers.Tensors(theirs), recipe(drops=drops))
  theirs["head"][6, 1] += 1
  with pytest.raises(WeightsError, match="head: expected a copy of embed"):
    engine.make_plan(helpers.Tensors(theirs), recipe(drops=drops))


def test_after_changes_numbers_and_shape():
  rows = [Row("embed", "net/table", "v d", after=lambda x: x[::2] * 2)]
  theirs = {"embed": X.reshape(6, 4)}
  made = recipe(rows=rows, like={"net/table": (3, 4)}, sizes={"v": 6, "d": 4})
  got = helpers.in_memory(helpers.Tensors(theirs), made)
  np.testing.assert_array_equal(got["net/table"], theirs["embed"][::2] * 2)
  wrong = recipe(rows=rows, like={"net/table": (4, 4)}, sizes=made.sizes)
  with pytest.raises(WeightsError, match=r"becomes \(3, 4\).*needs \(4, 4\)"):
    helpers.in_memory(helpers.Tensors(theirs), wrong)


def test_all_or_nothing(tmp_path):
  target = tmp_path / "new" / "out"
  with pytest.raises(KeyError), all_or_nothing(str(target)) as place:
    (place / "half").write_text("x")
    raise KeyError
  assert list((tmp_path / "new").iterdir()) == []
  with all_or_nothing(str(target)) as place:
    (place / "whole").write_text("x")
    assert not target.exists()
  assert [f.name for f in target.iterdir()] == ["whole"]
  link = tmp_path / "link"
  link.symlink_to(tmp_path / "gone")
  for name, message in (
    ("", "--to is empty: name a directory"),
    (str(link), "link exists: choose another --to"),
    (str(target / "whole" / "x"), "x cannot be written: .*whole: .*another"),
  ):
    with pytest.raises(WeightsError, match=message), all_or_nothing(name):
      pass
  with pytest.raises(WeightsError, match="exists: choose another --to"):
    with all_or_nothing(str(target)):
      pass
