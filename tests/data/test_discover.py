"""format="auto": each kind of folder is found, and only where it is plain."""

import json
import tarfile

import pyarrow as pa
import pytest

from configs import folder
from tests.data import test_arrow, test_parquet, test_webdataset
from tests.data.test_bad_data import open_, png, read, refused
from tests.data.test_conversations import DRAWN, LLAVA
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data import identity
from unifluid_jax.data.sources import discover, sniff

KEY = "data.train.x"


def put(root, **files):
  """Files by name: "/" for "__"; bytes, texts or JSON."""
  for name, content in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes):
      text = content if isinstance(content, str) else json.dumps(content)
      content = text.encode()
    path.write_bytes(content)


def images(root, *names):
  put(root, **{name: png(i) for i, name in enumerate(names)})


def found(root, path=".", split="train", **fields):
  config = SourceConfig("auto", path, split, **fields)
  return discover.resolved(config, str(root), KEY)


def coco(name):
  captions = [{"image_id": 1, "caption": f"of {name}"}]
  return {"images": [{"id": 1, "file_name": name}], "annotations": captions}


def own(root):
  images(root, "a.png")
  put(root, **{"captions.jsonl": {"image": "a.png", "suffix": "a"},
               "annotations.json": coco("a.png"), "a.txt": "x"})  # fmt: skip


def coco_sets(root):
  images(root, "images/train2017/1.png", "images/val2017/2.png")
  put(root, **{
    "annotations/captions_train2017.json": coco("1.png"),
    "annotations/instances_train2017.json": coco("1.png"),
    "annotations/captions_val2017.json": coco("2.png"),
  })  # fmt: skip


def llava(root):
  images(root, "pictures/a.png")
  put(root, **{"llava_v1.json": [LLAVA]})


def sharegpt(root):
  images(root, "a.png", "b/b.png")
  put(root, **{"t.jsonl": DRAWN})


def metadata(root):
  for split, name in (("train", "a"), ("test", "b")):
    images(root, f"{split}/{name}.png")
    text = f"file_name,caption\n{name}.png,of {name}\n"
    put(root, **{f"{split}/metadata.csv": text})


def table(root):
  images(root, "pics/a.png")
  put(root, **{"a.tsv": "filename\tquestion\tanswer\npics/a.png\tq\ta\n"})


def json_lines(root):
  images(root, "a.png")
  put(root, **{"x.jsonl": {"image": "a.png", "caption": "of a"}})


def tars(root):
  """As img2dataset writes them, with a split for evaluation."""
  for name in ("train-0", "train-1", "val-0"):
    test_webdataset.write(root / f"{name}.tar", {"a.png": png(), "a.txt": b"x"})
    pa.parquet.write_table(pa.table({"url": ["u"]}), root / f"{name}.parquet")
    put(root, **{f"{name}_stats.json": {"count": 1}})


def parquet(root):
  """As the hub has data sets."""
  columns = dict(jpg=[test_parquet.png(0)], caption=["c"], n=[1])
  for name in ("train-00000-of-00001", "test-00000-of-00001"):
    test_parquet.write(root / "data" / f"{name}.parquet", columns,
                       {"jpg": pa.binary()})  # fmt: skip
  put(root, **{"README.md": "about"})


def edits(root):
  test_parquet.write(root / "a.parquet", test_parquet.hq([0]))


def arrow(root):
  for split in ("train", "validation"):
    test_arrow.save(root / split, test_arrow.five())
  put(root, **{"dataset_dict.json": {"splits": ["train", "validation"]}})


def captions(root):
  images(root, "1/a.png", "1/b.png", "2/c.png")
  put(root, **{"1/a.txt": "a", "1/b.txt": "b", "README.txt": "about"})


def classes(root):
  images(root, "train/a.png", "plane/b.png", "car/c.png")


def split_classes(root):
  images(root, "train/cat/a.png", "train/dog/b.png", "val/cat/c.png",
         "val/dog/d.png")  # fmt: skip


# Maker; format, path and columns of training; the split to evaluate on.
KINDS = [
  (own, "jsonl", "captions.jsonl", {}, "train"),
  (coco_sets, "coco", "annotations/captions_train2017.json:"
   "../images/train2017", {}, "validation"),
  (llava, "llava", "llava_v1.json:pictures", {}, "train"),
  (sharegpt, "sharegpt", "t.jsonl", {}, "train"),
  (metadata, "imagefolder", "train", dict(text="caption"), "test"),
  (table, "table", "a.tsv",
   dict(image="filename", text="answer", question="question"), "train"),
  (json_lines, "table", "x.jsonl", dict(text="caption"), "train"),
  (tars, "webdataset", "*train*.tar", {}, "validation"),
  (parquet, "parquet", "data/*train*.parquet",
   dict(image="jpg", text="caption"), "test"),
  (edits, "hq_edit", ".", {}, "train"),
  (arrow, "arrow", "train", {}, "validation"),
  (captions, "captions_txt", ".", {}, "train"),
  (classes, "class_folders", ".", {}, "train"),
  (split_classes, "class_folders", "train", {}, "validation"),
]  # fmt: skip


@pytest.mark.parametrize("case", KINDS, ids=lambda case: case[0].__name__)
def test_each_kind_is_found_and_read(tmp_path, case):
  make, format, path, columns, evaluated = case
  make(tmp_path)
  before = sorted((p, p.is_file() and p.read_bytes())
                  for p in tmp_path.rglob("*"))  # fmt: skip
  config = found(tmp_path)
  assert config == SourceConfig(format, path, **columns)
  records, bad = read(open_(tmp_path, "auto", "."))
  assert records and not bad and all(r.image for r in records)
  split = discover.evaluation_split(str(tmp_path), ".")
  assert split == evaluated
  others, _ = read(open_(tmp_path, "auto", ".", split=split))
  assert (others != records) == (split != "train")
  given = SourceConfig("auto", ".")
  digest = identity.of_source(given, str(tmp_path))["digest"]
  assert digest == identity.of_source(config, str(tmp_path))["digest"]
  assert before == sorted((p, p.is_file() and p.read_bytes())
                          for p in tmp_path.rglob("*"))  # fmt: skip


def test_the_split_to_evaluate_is_read_by_the_columns_of_training(tmp_path):
  """Else data whose columns have other names is evaluated as trained on."""
  for split in ("train", "validation"):
    columns = dict(bild=[test_parquet.cell(png())], satz=[split])
    test_parquet.write(tmp_path / f"{split}.parquet", columns)
  c = folder.get_config()
  c.data.root = str(tmp_path)
  c.data.train.images.update(image="bild", text="satz")
  assert c.data.eval.images.split == "validation"
  assert c.data.eval.images.text == "satz"


def test_a_file_is_found_by_its_name(tmp_path):
  coco_sets(tmp_path)
  config = found(tmp_path, "annotations/captions_val2017.json")
  assert config.path.endswith("val2017.json:../images/val2017")


def test_columns_that_are_named_count(tmp_path):
  images(tmp_path, "a.png")
  put(tmp_path, **{"t.csv": "image,text,alt\na.png,x,y\n"})
  assert found(tmp_path).text == "text"
  config = found(tmp_path, text="alt")
  assert open_(tmp_path, "auto", ".", text="alt")[0].captions == ("y",)
  assert (config.image, config.text) == ("image", "alt")


def test_two_kinds_are_named(tmp_path):
  images(tmp_path, "a.png")
  put(tmp_path, **{"t.csv": "image,text\na.png,x\n", "a.txt": "a"})
  text = refused(tmp_path, "auto", ".")
  assert "in 2 ways: table (t.csv); captions_txt (1 of 1 images" in text
  assert f"name one by {KEY}.format and {KEY}.path" in text
  put(tmp_path, **{"u.csv": "image,text\na.png,x\n"})
  assert "table (t.csv); table (u.csv)" in refused(tmp_path, "auto", ".")


def test_classes_with_some_texts_are_named(tmp_path):
  images(tmp_path, "cat/a.png", "cat/b.png", "dog/c.png")
  put(tmp_path, **{"cat/a.txt": "a cat"})
  text = refused(tmp_path, "auto", ".")
  assert "captions_txt (1 of 3 images" in text
  assert "class_folders (2 subfolders with images: cat, dog)" in text


def test_nothing_that_is_known(tmp_path):
  images(tmp_path, "a.png")
  put(tmp_path, **{"notes.csv": "a,b\n1,2\n"})
  with pytest.raises(ValueError, match="looked for captions.jsonl") as info:
    found(tmp_path)
  assert "it holds a.png, notes.csv" in str(info.value)
  assert "\n" not in str(info.value)
  with pytest.raises(FileNotFoundError, match="no data at .*nowhere"):
    found(tmp_path, "nowhere")


def test_a_split_that_is_missing(tmp_path):
  metadata(tmp_path)
  with pytest.raises(FileNotFoundError, match="no split 'validation' is told"):
    found(tmp_path, split="validation")


def test_images_that_a_list_names_and_nobody_has(tmp_path):
  put(tmp_path, **{"a.json": coco("gone.png")})
  text = refused(tmp_path, "auto", ".")
  assert "a.json names the image 'gone.png', found neither beside" in text


def test_mixed_shards_need_a_pattern(tmp_path):
  for name in ("train-0", "retrain"):
    with tarfile.open(tmp_path / f"{name}.tar", "w"):
      pass
  text = refused(tmp_path, "auto", ".")
  assert "train-0.tar of split 'train' beside retrain.tar" in text


def test_what_was_found_is_said(tmp_path):
  table(tmp_path)
  config = SourceConfig("auto", ".")
  said = discover.describe(discover.find(config, str(tmp_path), KEY))
  assert said == (f"table at {tmp_path}/a.tsv: a.tsv; columns: image "
                  "'filename', text 'answer', question 'question'")  # fmt: skip


@pytest.mark.parametrize("folder", ["", "images/"])
def test_lists_have_the_images_of_their_split(tmp_path, folder):
  """Where every split counts its images from 0."""
  splits = ("test", "train", "val")
  images(tmp_path, *(f"{folder}{s}2017/0.png" for s in splits))
  put(tmp_path, **{f"annotations/captions_{s}.json": coco("0.png")
                   for s in splits})  # fmt: skip
  for i, split in enumerate(("test", "train", "validation")):
    (record,), _ = read(open_(tmp_path, "auto", ".", split=split))
    assert record.image == png(i)
  # The list says it where the source does not.
  path = "annotations/captions_val.json"
  assert open_(tmp_path, "auto", path)[0].image == png(2)


def test_images_of_one_name_in_several_folders_are_named(tmp_path):
  images(tmp_path, "small/0.png", "large/0.png")
  put(tmp_path, **{"a.json": coco("0.png")})
  text = refused(tmp_path, "auto", ".")
  assert f"in {tmp_path}/large/ and in {tmp_path}/small/: name" in text
  images(tmp_path, "0.png")  # beside the list it is plain
  assert found(tmp_path).path == "a.json"


def list_in(folder):
  put(folder, **{"list.json": [LLAVA]})
  images(folder, "a.png")


def table_in(folder):
  put(folder, **{"list.csv": "image,text\na.png,x\n"})
  images(folder, "a.png")


def own_in(folder):
  put(folder, **{"captions.jsonl": {"image": "a.png", "suffix": "a"}})
  images(folder, "a.png")


def tar_in(folder):
  test_webdataset.write(folder / "0.tar", {"a.png": png(), "a.txt": b"x"})


def parquet_in(folder):
  columns = dict(image=[test_parquet.cell(png())], text=["c"])
  test_parquet.write(folder / "0.parquet", columns)


@pytest.mark.parametrize(
  "make", [list_in, table_in, own_in, tar_in, parquet_in]
)
def test_what_lies_in_the_folder_of_a_split_is_of_it(tmp_path, make):
  """Whatever the files are called: else training data would be evaluated."""
  for name in ("train", "val"):
    (tmp_path / name).mkdir()
    make(tmp_path / name)
  assert discover.evaluation_split(str(tmp_path), ".") == "validation"
  config = found(tmp_path, split="validation")
  assert config.path.split("/")[0] == "val"
  assert found(tmp_path, "val", split="validation").path == config.path
  assert len(open_(tmp_path, "auto", ".", split="validation")) == 1


def test_several_folders_of_a_split_are_named(tmp_path):
  """One of them would be read, and the others left out."""
  images(tmp_path, "train_1/a.png", "train_2/b.png", "val/c.png")
  put(tmp_path, **{f"{n}.txt": "x" for n in ("train_1/a", "train_2/b")})
  text = refused(tmp_path, "auto", ".")
  assert f"train_1 and train_2 of split 'train': name one by {KEY}.path" in text
  images(tmp_path, "train/d.png")
  put(tmp_path, **{"train/d.txt": "x"})
  assert found(tmp_path).path == "train"


@pytest.mark.parametrize("first", ["images", "annotations"])
def test_coco_is_known_by_its_middle(tmp_path, monkeypatch, first):
  """Its own lists have 20 MB of images before the first caption."""
  monkeypatch.setattr(sniff, "_HEAD", 1 << 14)
  monkeypatch.setattr(sniff, "_OVERLAP", 64)
  many = coco("0.png")
  many["images"] += [{"id": i, "file_name": f"{i}.png"} for i in range(2, 999)]
  many["annotations"] *= 999
  second = {"images": "annotations", "annotations": "images"}[first]
  images(tmp_path, "train2017/0.png")
  name = "annotations/captions_train2017.json"
  put(tmp_path, **{name: {first: many[first], second: many[second]}})
  assert found(tmp_path).path == f"{name}:../train2017"


@pytest.mark.parametrize("inner", ["", "cat/", "dog/"])
def test_splits_are_no_classes_whatever_lies_beside_them(tmp_path, inner):
  """Else what is evaluated would be trained on, as a class "val"."""
  for name in ("train", "val", "samples"):
    folders = ("cat/", "dog/") if inner else ("",)
    images(tmp_path, *(f"{name}/{f}0.png" for f in folders))
    if inner != "dog/":
      put(tmp_path, **{f"{name}/{f}0.txt": name for f in folders})
  form = "class_folders" if inner == "dog/" else "captions_txt"
  config = found(tmp_path)
  assert (config.format, config.path) == (form, "train")
  assert found(tmp_path, split="validation").path == "val"


def test_metadata_above_splits_are_named(tmp_path):
  """Else test images would be trained on."""
  images(tmp_path, "train/0.png", "test/1.png")
  put(tmp_path, **{"metadata.csv": "file_name,text\ntrain/0.png,a\n"})
  text = refused(tmp_path, "auto", ".")
  assert "has metadata.csv above test and train: split it" in text
  assert len(open_(tmp_path, "imagefolder", ".")) == 1
