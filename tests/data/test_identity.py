"""What a data set is told apart by, and what leaves it the same."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tests import task_sets
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data import identity
from unifluid_jax.data.transfers import tasks
from unifluid_jax.data.worlds import shapes, shapes_builder


def digest(root, format_, path, **more):
  config = SourceConfig(format_, path, **more)
  return identity.of_source(config, str(root))["digest"]


def photo(path, seed):
  """A picture whose file is as long for every seed."""
  rng = np.random.default_rng(seed)
  Image.fromarray(rng.integers(0, 256, (8, 9, 3), np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
  root = tmp_path / "photos"
  (root / "images").mkdir(parents=True)
  lines, coco = [], {"images": [], "annotations": []}
  for i in range(5):
    photo(root / f"images/{i}.bmp", i)
    lines.append({"image": f"images/{i}.bmp", "suffix": f"photo {i}"})
    coco["images"].append({"id": i, "file_name": f"{i}.bmp"})
    coco["annotations"].append({"image_id": i, "caption": f"photo {i}"})
  text = "\n".join(map(json.dumps, lines)) + '\nno JSON\n{"suffix": "text"}\n'
  (root / "captions.jsonl").write_text(text)
  (root / "coco.json").write_text(json.dumps(coco))
  return root


FILES = [("jsonl", "captions.jsonl"), ("coco", "coco.json:images")]


@pytest.mark.parametrize("format_, path", FILES)
def test_a_moved_folder_is_the_same_data(folder, format_, path):
  before = digest(folder, format_, path)
  moved = folder.parent / "elsewhere" / "copy"
  shutil.copytree(folder, moved)
  (moved / "unrelated.txt").write_text("x")
  shutil.rmtree(folder)
  assert digest(moved, format_, path) == before
  assert digest(moved.parent, format_, f"copy/{path}") == before


@pytest.mark.parametrize("format_, path", FILES)
def test_a_replaced_image_is_noticed(folder, format_, path):
  """Even one whose file has the same name and length."""
  before, file = digest(folder, format_, path), folder / "images" / "3.bmp"
  length = file.stat().st_size
  photo(file, 77)
  replaced = digest(folder, format_, path)
  assert file.stat().st_size == length and replaced != before
  file.unlink()
  assert digest(folder, format_, path) not in (before, replaced)
  photo(file, 3)
  assert digest(folder, format_, path) == before


@pytest.mark.parametrize("format_, path", FILES)
def test_a_changed_caption_is_noticed(folder, format_, path):
  before, file = digest(folder, format_, path), folder / path.split(":")[0]
  file.write_text(file.read_text().replace("photo 2", "photo 7"))
  assert digest(folder, format_, path) != before


def test_settings_that_choose_records_count_and_others_do_not(folder):
  source = SourceConfig("jsonl", "captions.jsonl")
  same = dataclasses.replace(source, weight=3.0, tasks=("i2t",), moments="m")
  other = dataclasses.replace(source, score="clip", min_score=0.5)
  found = [
    identity.of_source(s, str(folder))["digest"] for s in (source, same, other)
  ]
  assert found[0] == found[1] != found[2]


def world(root, seed, train=9):
  shapes_builder.build(
    root / "shapes", shapes.World(), {"train": train, "validation": 3}, seed
  )
  return root


def test_a_redrawn_world_is_noticed_and_the_same_one_is_not(tmp_path):
  """Its files have names and lengths that tell nothing."""
  a, b, again = (
    world(tmp_path / name, seed)
    for name, seed in (("a", 0), ("b", 1), ("c", 0))
  )
  ours = digest(a, "array_record", "shapes")
  assert digest(b, "array_record", "shapes") != ours
  assert digest(again, "array_record", "shapes") == ours
  assert digest(a, "array_record", "shapes", split="validation") != ours


def test_a_parquet_file_that_was_replaced(tmp_path):
  import pyarrow as pa
  import pyarrow.parquet as pq

  def write(text):
    table = pa.table({"image": [b"x"] * 3, "text": ["a", text, "c"]})
    pq.write_table(table, tmp_path / "0.parquet")
    return digest(tmp_path, "parquet", ".")

  first = write("b")
  assert write("d") != first
  assert write("b") == first


def test_a_transfer_task(tmp_path):
  root = task_sets.make(tmp_path / "sets")
  before = digest(root, "transfer", "okvqa")
  moved = tmp_path / "moved"
  shutil.move(root, moved)
  assert digest(moved, "transfer", "okvqa") == before
  example = tasks.read(tasks.named("okvqa"), str(moved), "train")[0]
  with open(example.images[0], "ab") as file:
    file.write(b"x")
  assert digest(moved, "transfer", "okvqa") != before


def test_large_files_are_sampled_and_long_lists_too(monkeypatch, tmp_path):
  monkeypatch.setattr(identity, "_BLOCK", 4)
  monkeypatch.setattr(identity, "_BLOCKS", 4)
  monkeypatch.setattr(identity, "_IMAGES", 3)
  places = identity._places(100, 4, 4)
  assert places == [(0, 4), (32, 4), (64, 4), (96, 4)]
  assert identity._places(15, 4, 4) == [(0, 4), (4, 4), (8, 4), (12, 3)]
  assert list(identity._spread(5, 3)) == [0, 2, 4]
  file = tmp_path / "a.parquet"
  file.write_bytes(bytes(100))
  before = digest(tmp_path, "parquet", "a.parquet")
  file.write_bytes(bytes(99) + b"x")  # in the last block
  assert digest(tmp_path, "parquet", "a.parquet") != before
  file.write_bytes(bytes(101))
  assert digest(tmp_path, "parquet", "a.parquet") != before


def test_nothing_there_is_one_error(tmp_path):
  with pytest.raises(FileNotFoundError, match="change data.train.<name>.path"):
    digest(tmp_path, "jsonl", "nothing.jsonl")


def test_what_readers_skip_or_refuse_is_no_traceback(folder):
  before = digest(folder, "jsonl", "captions.jsonl")
  with (folder / "captions.jsonl").open("a") as lines:
    lines.write('{"image": null}\n{"image": "a\\u0000b"}\n[1]\n')
    lines.write('{"image": "\\ud800.png"}\n' + "[" * 100_000 + "\n")
  assert digest(folder, "jsonl", "captions.jsonl") != before
  coco = json.loads((folder / "coco.json").read_text())
  coco["images"] += [{"id": 9, "file_name": None}, 3]
  (folder / "coco.json").write_text(json.dumps(coco))
  digest(folder, "coco", "coco.json:images")
  (folder / "coco.json").write_text("[" * 100_000)
  with pytest.raises(ValueError, match="no COCO captions file"):
    digest(folder, "coco", "coco.json:images")
  os.mkfifo(folder / "pipe.jsonl")
  with pytest.raises(ValueError, match="no regular file"):
    digest(folder, "jsonl", "pipe.jsonl")


def test_a_cut_data_set_is_one_line(tmp_path):
  info = world(tmp_path, 0) / "shapes" / "dataset_info.json"
  info.write_text(info.read_text()[:90])
  with pytest.raises(ValueError, match="no data set that TFDS can open"):
    digest(tmp_path, "array_record", "shapes")
