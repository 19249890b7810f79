"""The scene classifier judges as the analytic detector does, where both see."""

import dataclasses

import numpy as np
import pytest

from tests.evals.test_advanced_suite import Painter, bench
from unifluid_jax.data.records import Record
from unifluid_jax.data.worlds import shapes, shapes_builder, shapes_text
from unifluid_jax.evals.metrics import geneval as rules
from unifluid_jax.evals.worlds import (
  scene_classifier,
  second_judge,
  shapes_detector,
  world_suite,
)

WORLD = shapes.World()
DETECTOR = shapes_detector.ShapesDetector(WORLD)


def records(count, split="train"):
  return [shapes_builder.record(WORLD, split, 0, i) for i in range(count)]


def labels_of(record):
  return world_suite.labels_of(WORLD, record["scene"])


def pixels_of(record):
  return shapes.draw(WORLD, shapes.scene_from_json(record["scene"]))


@pytest.fixture(scope="module")
def scenes():
  return records(80)


def test_detections_are_the_items_of_a_scene(scenes):
  for record in scenes:
    scene = shapes.scene_from_json(record["scene"])
    found = second_judge.detections(WORLD, labels_of(record))
    assert {(d.name, d.colour) for d in found} == {
      (i.shape, i.colour) for i in scene.items
    }
    assert len(found) == len(scene.items)
    for item in scene.items:
      assert any(
        d.name == item.shape and d.box[0] <= item.x <= d.box[2]
        and d.box[1] <= item.y <= d.box[3] for d in found
      )  # fmt: skip


@pytest.mark.parametrize("tag", shapes_text.TAGS)
def test_true_scenes_are_judged_as_by_the_detector(tag, scenes):
  tasks = shapes_text.geneval_prompts(WORLD, tag, 40, np.random.default_rng(1))
  said = []
  for record in scenes:
    cells = second_judge.detections(WORLD, labels_of(record))
    found = DETECTOR.detect(pixels_of(record))
    for task in tasks:
      said.append(rules.judge(task, cells)[0])
      assert said[-1] == rules.judge(task, found)[0], (task, record["scene"])
  assert any(said) and not all(said)


class Copier(Painter):
  """Draws the first scene that a prompt is true of, or the last."""

  def __init__(self, scenes):
    self.images_of = [pixels_of(r) for r in scenes]
    self.found = [DETECTOR.detect(x) for x in self.images_of]
    self.tasks = {}
    for tag in shapes_text.TAGS:
      for task in shapes_text.geneval_prompts(
        WORLD, tag, 8, np.random.default_rng(0)
      ):
        self.tasks[task["prompt"]] = task

  def images(self, prompts, seeds):
    assert seeds == range(10**6, 10**6 + len(prompts))
    return np.stack([
      next((x for x, f in zip(self.images_of, self.found, strict=True)
            if p in self.tasks and rules.judge(self.tasks[p], f)[0]),
           self.images_of[-1])
      for p in prompts
    ])  # fmt: skip


def test_it_scores_drawings_with_their_chance(scenes, monkeypatch):
  seen = records(800)
  images = np.stack([pixels_of(r) for r in seen])
  labels = np.stack([labels_of(r) for r in seen])
  net = scene_classifier.train_classifier(images, labels, steps=400)
  monkeypatch.setattr(world_suite, "classifier", lambda bench: net)
  out = second_judge.geneval_classified(Copier(seen[:150]), bench())
  names = {f"geneval_classified/{t}" for t in ("overall", *shapes_text.TAGS)}
  assert set(out.floors) == names
  assert set(out.values) == names | {"geneval_classified/detector_agrees"}
  assert out.values["geneval_classified/detector_agrees"] > 0.9
  tags = [out.values[f"geneval_classified/{t}"] for t in shapes_text.TAGS]
  assert out.values["geneval_classified/overall"] == pytest.approx(
    np.mean(tags)
  )
  assert out.floors["geneval_classified/overall"] < 0.4
  assert out.settings["prompts_per_task"] == 8


def test_scenes_are_drawn_with_the_seeds_of_the_bench(scenes, monkeypatch):
  """The painter looks at them; see `Copier`."""

  class Means:
    def features(self, images):
      return images.mean((1, 2))

  monkeypatch.setattr(world_suite, "classifier", lambda bench: Means())
  painter, made = Copier(scenes[:8]), bench()
  out = world_suite.geneval(painter, made)
  assert [s.seed - 10**6 for s in out.shown[:7]] == [0, 8, 16, 24, 32, 40, 1]
  made.records = lambda split: [
    Record(id=r["id"], image=r["image"].getvalue(), prompts=("a",))
    for r in scenes[:16]
  ]
  assert world_suite.frechet(painter, made).settings["images"] == 8


def test_another_data_set_in_the_folder_has_a_classifier_of_its_own(
  tmp_path, monkeypatch
):
  """`prepare` names the way: delete the data set, write another one there."""
  trained = []

  def train(images, labels, grid):
    trained.append(labels)
    net = scene_classifier._Net(labels.shape[1], 40, 8, grid, 4)
    zero = np.zeros(1, np.float32)
    return scene_classifier.SceneClassifier(net, {"a": zero}, zero, zero)

  monkeypatch.setattr(scene_classifier, "train_classifier", train)

  def classifier_of(seed):
    made = bench()
    made.config = dataclasses.replace(
      made.config,
      data=dataclasses.replace(made.config.data, root=str(tmp_path)),
    )
    four = [shapes_builder.record(WORLD, "train", seed, i) for i in range(4)]
    kept = [
      Record(r["id"], r["image"].getvalue(), scene=r["scene"]) for r in four
    ]
    made.train_records = lambda count: iter(kept)
    return world_suite.classifier(made)

  for seed in (0, 1, 0):
    classifier_of(seed)
  assert len(trained) == 2
  assert len(list(tmp_path.iterdir())) == 2


def test_worlds_without_cells_are_refused():
  made = bench()
  world = dict(made.config.data.world) | {"grid": 0, "canvas": 64}
  data = dataclasses.replace(made.config.data, world=world)
  made.config = dataclasses.replace(made.config, data=data)
  with pytest.raises(ValueError, match="grid=0"):
    second_judge.geneval_classified(Painter(lambda p: True), made)
