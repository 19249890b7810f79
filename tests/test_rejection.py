"""Best of n: which drawings are kept, and how rounds of it follow."""

import dataclasses
import json

import numpy as np
import pytest

from tests.systems.conftest import tiny
from unifluid_jax import rejection
from unifluid_jax.data.sources import source as sources
from unifluid_jax.data.worlds import shapes, shapes_text
from unifluid_jax.data.worlds.shapes import Item, Scene
from unifluid_jax.evals import rewards
from unifluid_jax.evals.bench import Bench
from unifluid_jax.evals.metrics import geneval
from unifluid_jax.evals.worlds.shapes_reward import ShapesReward

WORLD = {"train": 8, "validation": 8, "held_out": 4, "seed": 0}


class Painter:
  """Draws its seed as a colour, so that images tell their seeds apart."""

  def __init__(self):
    self.calls = []

  def images(self, prompts, seeds):
    self.calls.append((list(prompts), list(seeds)))
    parts = [np.frombuffer(np.uint32(s).tobytes(), np.uint8) for s in seeds]
    return np.stack([np.tile(p[:3], (4, 4, 1)) for p in parts])


class Brightness:
  """Rewards red; asks for numbers."""

  def prompts(self, count, rng):
    return [{"prompt": f"{n}"} for n in rng.permutation(count)]

  def judge(self, asked, images):
    assert len(asked) == len(images)
    return np.float32(images[:, 0, 0, 0] / 255)

  def kind(self, asked):
    return "even" if int(asked["prompt"]) % 2 == 0 else "odd"


def drawn(seed=3, prompts=20, draws=5, painter=None):
  painter = painter or Painter()
  found = rejection.drawings(painter.images, Brightness(), prompts, draws, seed)
  return list(found)


def test_drawings_depend_on_the_seed_alone(monkeypatch):
  whole = drawn()
  monkeypatch.setattr(rejection, "_AT_ONCE", 15)  # three prompts at once
  painter = Painter()
  parts = drawn(painter=painter)
  assert [len(prompts) for prompts, _ in painter.calls] == [15] * 6 + [10]
  for a, b in zip(whole, parts, strict=True):
    assert a.asked == b.asked
    np.testing.assert_array_equal(a.images, b.images)
    wanted = np.float32(a.images[:, 0, 0, 0] / 255)
    np.testing.assert_array_equal(b.rewards, wanted)
  seeds = np.concatenate([seeds for _, seeds in painter.calls])
  assert len(set(seeds.tolist())) == 100
  assert not np.array_equal(drawn(4)[0].images, whole[0].images)


def test_each_image_is_drawn_from_its_own_prompt():
  painter = Painter()
  found = drawn(painter=painter)
  ((prompts, _),) = painter.calls
  assert prompts == [e.asked["prompt"] for e in found for _ in range(5)]


def test_the_best_are_kept_in_the_order_of_drawing():
  rewards_ = np.asarray([0.5, 1.0, 0.2, 1.0, 0.9], np.float32)
  images = np.zeros((5, 1, 1, 3), np.uint8)
  each = rejection.Drawn({"prompt": ""}, images, rewards_)
  assert each.best(1, 1.0) == [1]
  assert each.best(2, 1.0) == [1, 3]
  assert each.best(9, 0.5) == [1, 3, 4, 0]


def test_kept_images_are_an_imagefolder(tmp_path):
  found = drawn()
  lines = rejection.write(tmp_path, iter(found), 2, 0.7, Brightness().kind)
  source = sources.open_source(
    sources.SourceConfig("imagefolder", "."), str(tmp_path), ""
  )
  records = [source[i] for i in range(len(source))]
  wanted = [
    (each.asked["prompt"], each.images[place])
    for each in found
    for place in each.best(2, 0.7)
  ]
  assert len(records) == len(wanted) > 10
  decode = Bench(tiny(), "").decode
  for record, (text, image) in zip(records, wanted, strict=True):
    assert record.captions == (text,)
    np.testing.assert_array_equal(decode(record.image), image)
  table = (tmp_path / "metadata.jsonl").read_text().splitlines()
  assert all(json.loads(row)["reward"] >= 0.7 for row in table)
  right = [e.rewards >= 0.7 for e in found if int(e.asked["prompt"]) % 2]
  assert (
    f"odd            {np.mean(right):.3f} of images right, "
    f"{np.mean(np.any(right, axis=1)):.3f} of 10 prompts have one"
  ) in lines
  assert lines[-1] == f"kept {len(wanted)} images"


def test_no_right_drawing_is_an_error(tmp_path):
  found = drawn()
  with pytest.raises(ValueError, match="none of the drawings is rewarded 2"):
    rejection.write(tmp_path, iter(found), 2, 2.0, Brightness().kind)
  assert not (tmp_path / "metadata.jsonl").exists()


def test_rounds_draw_with_the_run_before():
  todo = rejection.rounds(
    "reward:shapes", "runs/a", "/w", 200, count=2, prompts=30, draws=4,
    least=1.0, seed=1, sampling=["cfg=1"],
  )  # fmt: skip
  modules = [stage.command[0] for stage in todo]
  assert modules == [*["best_of", "encode", "main"] * 2, "evaluate"]
  given = [
    dict(flag.removeprefix("--").split("=", 1) for flag in s.command[1:]
         if "=" in flag)
    for s in todo
  ]  # fmt: skip
  first, again = given[0], given[3]
  assert (first["workdir"], again["workdir"]) == ("runs/a", "/w/round_1")
  assert (first["to"], again["to"]) == ("/w/drawn_1", "/w/drawn_2")
  assert (first["seed"], again["seed"]) == ("3", "4")
  assert first["sampling"] == "cfg=1"
  for encode, train, here in ((1, 2, 1), (4, 5, 2)):
    key = "config.data.train.rewarded"
    assert given[train][f"{key}.path"] == f"/w/drawn_{here}"
    assert given[train][f"{key}.moments"] == f"/w/drawn_{here}_encoded"
    assert given[train].pop("workdir") == f"/w/round_{here}"
    assert given[encode] == given[train]
  assert given[2]["config.init.all"] == "runs/a"
  assert given[5]["config.init.all"] == "/w/round_1"
  assert given[6]["workdir"] == "/w/round_2"


def test_sampling_options_are_those_of_the_run_but_for_changes():
  config = tiny()
  found = rejection.sampling_of(config, ["cfg=1", "order=random", "steps=7"])
  assert (found.cfg, found.order, found.steps) == (1, "random", 7)
  assert found.temperature == config.sampling.temperature
  for change, words in (
    ("cfg", "write OPTION=VALUE"), ("cgf=1", "cgf"), ("steps=0", "steps"),
  ):  # fmt: skip
    with pytest.raises(ValueError, match=words):
      rejection.sampling_of(config, [change])
  with pytest.raises(ValueError, match="cfg=much must be a number"):
    rejection.sampling_of(config, ["cfg=much"])
  same = rejection.sampling_of(config, ["cfg=None", "order=None"])
  assert same == config.sampling  # None: as the run has it


def test_drawings_of_a_run_that_took_the_place_of_another_are_others():
  made = rejection.recipe("/run", 20, "a", seed=0)
  assert made == rejection.recipe("/run", 20, "a", seed=0)
  assert made != rejection.recipe("/run", 20, "b", seed=0)


# ------------------------------------------------------------------ The rewards


def bench_of(**world):
  config = tiny()
  data = dataclasses.replace(config.data, world=world)
  return Bench(dataclasses.replace(config, data=data), "")


def shapes_bench():
  return bench_of(**WORLD)


def item(shape, colour, x, y):
  return Item(shape, colour, x, y, 6.0)


RED = item("circle", "red", 8.0, 8.0)
BLUE = item("square", "blue", 24.0, 8.0)


def right(task, *items):
  image = shapes.draw(shapes.World(), Scene("light", items))
  found = ShapesReward(shapes_bench()).judge([task], image[None])
  return found.tolist()


def test_shapes_reward_wants_what_is_asked_for_and_no_more():
  clauses = [
    {"class": "circle", "count": 1, "color": "red"},
    {"class": "square", "count": 1, "color": "blue"},
  ]
  two = {"tag": "color_attr", "prompt": "", "include": clauses}
  one = {"tag": "colors", "prompt": "", "include": clauses[:1]}
  assert right(two, RED, BLUE) == [1]
  swapped = item("circle", "blue", 8.0, 8.0), item("square", "red", 24.0, 8.0)
  assert right(two, *swapped) == [0]
  assert right(two, RED) == [0]
  assert right(one, RED) == [1]
  # GenEval itself lets the second object pass.
  scene = shapes.draw(shapes.World(), Scene("light", (RED, BLUE)))
  reward = ShapesReward(shapes_bench())
  assert geneval.judge(one, reward._detector.detect(scene))[0]
  assert right(one, RED, BLUE) == [0]


def test_shapes_prompts_favour_tasks_with_many_and_are_never_held_out():
  reward = rewards.of(shapes_bench())
  assert isinstance(reward, ShapesReward)
  asked = reward.prompts(600, np.random.default_rng(0))
  counts = [sum(reward.kind(a) == t for a in asked) for t in shapes_text.TAGS]
  world = shapes.World()
  sizes = [len(shapes_text.geneval_tasks(world, t, "seen"))
           for t in shapes_text.TAGS]  # fmt: skip
  assert sizes[:3] == [4, 12, 12] and sizes[5] > 400
  wanted = 50 + 300 * np.sqrt(sizes) / np.sqrt(sizes).sum()
  assert np.abs(counts - wanted).max() <= 1 and len(asked) == 600
  held = {" ".join(pair) for pair in world.held_out}
  assert not [a for a in asked if any(pair in a["prompt"] for pair in held)]


@pytest.mark.parametrize("count", [1, 4])
def test_few_shapes_prompts_are_of_all_tasks_in_time(count):
  """Rounded alike each time, some tasks would never be asked."""
  reward, rng = rewards.of(shapes_bench()), np.random.default_rng(0)
  asked = [reward.prompts(count, rng) for _ in range(200)]
  assert {len(each) for each in asked} == {count}
  kinds = [reward.kind(task) for each in asked for task in each]
  shares = [kinds.count(t) / len(kinds) for t in shapes_text.TAGS]
  assert min(shares) > 0.05 and max(shares) == shares[5] < 0.45


def test_other_data_have_no_reward():
  with pytest.raises(ValueError, match="nothing judges images of these data"):
    rewards.of(bench_of())
