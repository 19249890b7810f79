"""The files of the world of shapes."""

import re
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs import debug
from unifluid_jax import systems
from unifluid_jax.data.worlds import (
  shapes,
  shapes_builder,
  shapes_text,
  written,
)

WORLD = shapes.World()


SMALL = {"train": 30, "validation": 5, "held_out": 5}


def test_files_round_trip(tmp_path):
  path = shapes_builder.build(tmp_path / "ds", WORLD, SMALL, seed=3)
  builder = tfds.builder_from_directory(path)
  for split, size in SMALL.items():
    source = builder.as_data_source(split)
    assert len(source) == size
    for i in (0, size - 1):
      row, put = source[i], shapes_builder.record(WORLD, split, 3, i)
      for key in ("id", "scene"):
        assert row[key].decode() == put[key]
      for key in ("prompts", "captions"):
        assert [text.decode() for text in row[key]] == put[key]
      for key in ("question", "answer", "kind"):
        told = [text.decode() for text in row["questions"][key]]
        assert told == [q[key] for q in put["questions"]]
      scene = shapes.scene_from_json(row["scene"])
      np.testing.assert_array_equal(row["image"], shapes.draw(WORLD, scene))
      edit = row["edit"]
      assert edit["instruction"].decode() == put["edit"]["instruction"]
      target = np.asarray(Image.open(put["edit"]["target"]))
      np.testing.assert_array_equal(edit["target"], target)
      assert (target != row["image"]).any()
      after = shapes.scene_from_json(edit["scene"])
      np.testing.assert_array_equal(target, shapes.draw(WORLD, after))
  raw = builder.as_data_source(
    "train", decoders={"image": tfds.decode.SkipDecoding()}
  )
  assert raw[0]["image"].startswith(b"\x89PNG")
  assert "tensorflow" not in sys.modules


def test_pieces_made_elsewhere_change_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(shapes_builder, "_CHUNK", 12)
  one, many, drawn = tmp_path / "one", tmp_path / "many", []

  def backwards(path, made_of, count, write, join, made):
    assert path == str(many) and made_of["sizes"] == SMALL and not made()
    paths = [str(tmp_path / f"piece{i}") for i in range(count)]
    for number in reversed(range(count)):
      write(number, paths[number])
      drawn.append(number)
    join(paths)
    assert made()

  shapes_builder.build(one, WORLD, SMALL, seed=3)
  for _ in range(2):
    shapes_builder.build(many, WORLD, SMALL, 3, backwards)
  assert drawn == [4, 3, 2, 1, 0]  # once
  names = sorted(p.name for p in one.iterdir())
  assert names == sorted(p.name for p in many.iterdir())
  for name in names:
    if not name.endswith("info.json"):  # which names its folder
      assert (one / name).read_bytes() == (many / name).read_bytes(), name


def test_a_finished_build_is_reused_and_another_refused(tmp_path, monkeypatch):
  path = shapes_builder.build(tmp_path / "ds", WORLD, {"train": 3})
  # Nothing below may draw a scene.
  monkeypatch.delattr(shapes_builder, "record")
  shapes_builder.build(path, WORLD, {"train": 3})
  with pytest.raises(ValueError, match="another seed"):
    shapes_builder.build(path, WORLD, {"train": 3}, seed=1)
  with pytest.raises(ValueError, match="another sizes"):
    shapes_builder.build(path, WORLD, {"train": 4})
  # Earlier minor versions hold the same scenes, later majors others.
  recipe, text = path / "recipe.json", (path / "recipe.json").read_text()
  for version, same in (("2.9.0", True), ("1.1.0", False)):
    recipe.write_text(text.replace(shapes_builder.VERSION, version))
    if same:
      shapes_builder.build(path, WORLD, {"train": 3})
    else:
      with pytest.raises(ValueError, match="another version"):
        shapes_builder.build(path, WORLD, {"train": 3})
  recipe.write_text(text)
  other = shapes.World(jitter=0.5)
  with pytest.raises(ValueError, match="another world"):
    shapes_builder.build(path, other, {"train": 3})
  with pytest.raises(ValueError, match="give at least 1 record"):
    shapes_builder.build(tmp_path / "x", WORLD, {"test": 3})
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "file").touch()
  with pytest.raises(ValueError, match="choose another directory"):
    shapes_builder.build(tmp_path / "mine", WORLD, {"train": 3})


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
  def stop(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(shapes_builder.shapes_text, "caption", stop)
    with pytest.raises(KeyboardInterrupt):
      shapes_builder.build(tmp_path / "ds", WORLD, {"train": 3})
  assert not list(tmp_path.iterdir())
  shapes_builder.build(tmp_path / "ds", WORLD, {"train": 3})
  assert [p.name for p in tmp_path.iterdir()] == ["ds"]


def test_records_do_not_depend_on_the_split_sizes():
  a = shapes_builder.record(WORLD, "train", 7, 2)
  b = shapes_builder.record(WORLD, "train", 7, 2)
  assert a["scene"] == b["scene"] and a["prompts"] == b["prompts"]
  assert a["image"].getvalue() == b["image"].getvalue()
  for other in (("validation", 7, 2), ("train", 8, 2), ("train", 7, 3)):
    assert shapes_builder.record(WORLD, *other)["scene"] != a["scene"]


def test_training_texts_are_reworded_and_the_others_plain():
  made = {
    split: [shapes_builder.record(WORLD, split, 0, i) for i in range(60)]
    for split in SMALL
  }

  def texts(split):
    for r in made[split]:
      yield from (("prompt", p) for p in r["prompts"])
      yield from ((q["kind"], q["question"]) for q in r["questions"])
      yield "edit", r["edit"]["instruction"]

  for split in ("validation", "held_out"):
    kinds, said = zip(*texts(split), strict=True)
    assert "description" not in kinds
    assert all(t == t.lower() and t[-1] not in "?." for t in said)
    assert not any("color" in t for t in said)
  kinds, said = zip(*texts("train"), strict=True)
  assert kinds.count("description") == 60
  for sign in (r"^[A-Z]", r"\?$", r"\bcolor\b", r"(?i)^draw ", r"\b[2-4]\b"):
    assert any(re.search(sign, t) for t in said), sign
  for r in made["train"]:
    scene = shapes.scene_from_json(r["scene"])
    assert r["captions"] == [shapes_text.caption(scene)]
    for q in r["questions"]:
      if q["kind"] == "description":
        assert q["answer"] == r["captions"][0]


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"gird": 2}, "data.world has no gird; known: backgrounds"),
    ({"seed": None}, "data.world.seed=None: a whole number"),
    ({"train": "4"}, "data.world.train='4': a whole number"),
    ({"train": 4.5}, "data.world.train=4.5: a whole number"),
  ],
)
def test_options_of_the_world_are_checked_by_name(changes, words, tmp_path):
  c = debug.get_config()
  c.data.root = str(tmp_path)
  sizes = dict(train=4, validation=4, held_out=4, seed=0)
  c.data.world = {
    k: v for k, v in {**sizes, **changes}.items() if v is not None
  }
  with pytest.raises(ValueError, match=words):
    written.write_world(systems.resolve(c))
  assert not list(tmp_path.iterdir())
