"""What `prepare` says of a folder, its check, and what configs/folder.py makes
of it."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.data.test_bad_data import open_
from unifluid_jax import systems
from unifluid_jax.core import config_files
from unifluid_jax.data import survey
from unifluid_jax.data.sources import discover


def picture(width, height, seed=0):
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


SIZES = ((48, 50), (100, 40), (60, 70), (44, 90), (300, 200))


@pytest.fixture
def folder(tmp_path):
  """Five images with texts of 1 to 9 words; the fourth is cut."""
  for i, (width, height) in enumerate(SIZES):
    (tmp_path / f"{i}.png").write_bytes(picture(width, height, i))
    (tmp_path / f"{i}.txt").write_text(" ".join(["word"] * (2 * i + 1)))
  whole = (tmp_path / "3.png").read_bytes()
  (tmp_path / "3.png").write_bytes(whole[: len(whole) // 2])
  (tmp_path / "1.txt").write_text("a\x1b[31m red\tword")
  return tmp_path


def contents(folder):
  return {p.name: (p.read_bytes(), p.stat().st_mtime_ns)
          for p in folder.iterdir()}  # fmt: skip


def test_what_is_found_is_said(folder):
  before = contents(folder)
  said = survey.described(
    open_config(folder), str(folder), "", "data.train.x"
  ).split("\n  ")
  assert said == [
    f"data.train.x: captions_txt at {folder}: 5 of 5 images looked at have a "
    ".txt beside them",
    "5 records: 5 captions",
    # Cut images have headers still.
    "images of 48 x 50 to 300 x 200 pixels, median 100 x 40",
    "texts of 1 to 9 words, median 5",
    "e.g. 0.png, 48 x 50: word",
    "e.g. 2.png, 60 x 70: word word word word word",
    "e.g. 4.png, 300 x 200: " + " ".join(["word"] * 9),
  ]
  assert contents(folder) == before


def open_config(folder):
  return load(folder).data.train["images"]


def load(folder, config="folder", **flags):
  """As the command line does: the folder is named after the file is read."""
  tree = config_files.load(config)
  tree.data.root = str(folder)
  tree.update_from_flattened_dict({k.replace("__", "."): v
                                   for k, v in flags.items()})  # fmt: skip
  return systems.resolve(tree)


def test_texts_of_strangers_reach_no_terminal(folder):
  found = survey.look(open_(folder, "captions_txt", "."))
  assert found.words == (1, 3, 5, 7, 9) and found.side == 48
  record = open_(folder, "captions_txt", ".")[1]
  assert survey._example(record) == "1.png, 100 x 40: a?[31m red word"


def test_a_sample_of_many(folder):
  found = survey.look(open_(folder, "captions_txt", "."), limit=3)
  assert (found.records, found.looked, found.captions) == (5, 3, 3)
  assert found.sizes == (SIZES[0], SIZES[2], SIZES[4])
  said = survey.lines(found)
  assert said[0] == "5 records: 3 captions in 3 of them, evenly spaced"
  (folder / "2.png").write_bytes(b"no image")
  found = survey.look(open_(folder, "captions_txt", "."), limit=3)
  assert len(found.bad) == 1 and "record 2: image of 8 bytes" in found.bad[0]


def test_a_check_reads_everything(folder):
  (folder / "4.txt").write_text(" \n")
  said = []
  before = contents(folder)
  config = load(folder)
  with pytest.raises(ValueError, match=r"2 of 5 records of data\.train\.images"
                     ".*max_bad_share=0.001"):  # fmt: skip
    survey.verify(config.data, said.append)
  assert said[0].startswith("  bad: record 3: image of") and len(said) == 3
  assert said[1] == f"  bad: record 4: {folder}/4.txt is blank"
  assert said[2] == "data.train.images: verified 5 records, 2 bad"
  assert contents(folder) == before
  for name in ("3.png", "4.png"):
    (folder / name).unlink()
  said.clear()
  survey.verify(config.data, said.append)
  assert said == ["data.train.images: verified 3 records, 0 bad"]


# ------------------------------------------------------------ configs/folder.py


def test_a_folder_that_is_not_there_yet(tmp_path):
  c = load(tmp_path / "nowhere")
  assert (c.steps, c.loss.random_until, c.loss.raster_from) == (1200, 200, 500)
  assert c.batch == dict(t2i=8, i2t=8, edit=0, text=0)
  assert (c.model.image_size, c.model.vit.image_size) == (64, 64)
  assert (c.text.prompt, c.text.prefix, c.text.suffix) == (32, 16, 32)
  assert c.eval.metrics == ("samples", "captions")
  assert c.checkpoint.every == 600


def test_sizes_follow_the_images_and_their_texts(folder):
  c = load(folder)  # the shorter sides are 40, 44, 48, 60 and 200
  assert (c.model.image_size, c.model.vit.image_size) == (48, 48)
  assert load(folder, "vae:folder").model.image_size == 48
  assert load(folder, "tokenizer:folder").model.image_size == 48
  larger = load(folder, model__image_size=96).model
  assert (larger.image_size, larger.vit.image_size) == (96, 96)
  long = " ".join(["word"] * 12)  # 3 tokens each and 2: 38, so 40
  (folder / "0.txt").write_text(long)
  survey.quick.cache_clear()
  assert (load(folder).text.prompt, load(folder).text.prefix) == (40, 16)


def test_steps_follow_the_number_of_records(tmp_path):
  (tmp_path / "a.png").write_bytes(picture(20, 20))
  rows = "".join(f"a.png,text {i}\n" for i in range(400))
  (tmp_path / "t.csv").write_text(f"image,text\n{rows}")
  c = load(tmp_path)
  assert (c.steps, c.checkpoint.every) == (2500, 1250)  # 50 * 400 / 8
  assert (c.loss.random_until, c.loss.raster_from) == (416, 1041)
  assert c.model.image_size == 32
  c = load(tmp_path, steps=60)
  assert (c.steps, c.loss.random_until, c.checkpoint.every) == (60, 10, 30)


def test_questions_alone_are_answered_and_not_drawn(tmp_path):
  (tmp_path / "a.png").write_bytes(picture(64, 64))
  text = f"image,question,answer\na.png,{'why ' * 20},because\n"
  (tmp_path / "t.tsv").write_text(text.replace(",", "\t"))
  c = load(tmp_path)
  assert c.batch == dict(t2i=0, i2t=16, edit=0, text=0)
  assert c.eval.metrics == ("vqa",)
  assert c.text.prefix == 64  # 20 words


def test_questions_beside_captions_have_room(tmp_path):
  (tmp_path / "a.png").write_bytes(picture(64, 64))
  rows = [{"image": "a.png", "prefix": "why " * 20, "suffix": "because"},
          {"image": "a.png", "suffix": "a thing"}]  # fmt: skip
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / "captions.jsonl").write_text(lines)
  c = load(tmp_path)
  assert c.batch == dict(t2i=8, i2t=8, edit=0, text=0)
  assert (c.text.prompt, c.text.prefix, c.text.suffix) == (64, 64, 64)


def test_evaluation_follows_the_training_data(tmp_path):
  for split in ("train", "val"):
    for name in ("cat", "dog"):
      (tmp_path / split / name).mkdir(parents=True)
      (tmp_path / split / name / "a.png").write_bytes(picture(32, 32))
  c = load(tmp_path)
  assert c.data.eval["images"].split == "validation"
  said = discover.lines(c.data)
  assert said == [f"data.train.images: class_folders at {tmp_path}/train: 2 "
                  "subfolders with images: cat, dog"]  # fmt: skip
  named = dict(data__train__images__format="class_folders",
               data__train__images__path="val")  # fmt: skip
  told = load(tmp_path, **named).data.eval["images"]
  assert (told.format, told.path, told.split) == (
    "class_folders", "val", "train"
  )  # fmt: skip


def test_texts_without_spaces_have_slots_of_their_characters(tmp_path):
  (tmp_path / "0.png").write_bytes(picture(64, 64))
  (tmp_path / "0.txt").write_text("一隻紅色的狐狸在雪地上奔跑 fox 7", "utf-8")
  found = survey.quick(str(tmp_path), path=".", format="auto")
  assert found.words == (15,)
  assert load(tmp_path).text.prompt == 48
