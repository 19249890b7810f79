import io
import json
import pickle
import shutil
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data.sources import cached
from unifluid_jax.data.sources import source as sources

PREFIX = "caption en"


def png(seed):
  pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def open_(root, format, path, **fields):
  moments = bool(fields.get("moments"))
  config = SourceConfig(format=format, path=path, **fields)
  return sources.open_source(config, str(root), PREFIX, moments=moments)


# ArrayRecord through TFDS


def prepare(folder, name, features, examples, splits=("train",)):
  """Writes a TFDS directory; `examples` yields dicts of the features."""

  def generate(_):
    return {split: enumerate(examples(split)) for split in splits}

  builder_type = type(
    name,
    (tfds.core.GeneratorBasedBuilder,),
    dict(
      VERSION=tfds.core.Version("1.0.0"),
      _info=lambda self: tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features)
      ),
      _split_generators=lambda self, manager: generate(manager),
      _generate_examples=None,
      __module__=__name__,
    ),
  )
  builder = builder_type(data_dir=str(folder), file_format="array_record")
  builder.download_and_prepare()
  return builder.data_dir


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """Five records with every feature, and a split of two."""
  feature = tfds.features
  text, image = feature.Text(), feature.Image(encoding_format="png")
  features = dict(
    id=text,
    image=image,
    prompts=feature.Sequence(text),
    captions=feature.Sequence(text),
    questions=feature.Sequence(dict(question=text, answer=text, kind=text)),
    edit=dict(instruction=text, target=image, scene=text),
    scene=text,
  )

  def examples(split):
    for i in range(5 if split == "train" else 2):
      yield dict(
        id=f"{split}{i}",
        image=io.BytesIO(png(i)),
        prompts=[f"prompt {k} of {i}" for k in range(i)],
        captions=[f"caption {i}"],
        questions=[dict(question="how many", answer=str(i), kind="count")] * 2,
        edit=dict(
          instruction="make it red" if i else "",
          target=io.BytesIO(png(100 + i)),
          scene=f"after {i}",
        ),
        scene=f"before {i}",
      )

  root = tmp_path_factory.mktemp("world")
  prepare(root, "WorldToy", features, examples, ("train", "validation"))
  return root


def test_array_record_fields(world):
  source = open_(world, "array_record", "world_toy")
  assert len(source) == 5
  records = {r.id: r for r in (source[i] for i in range(5))}
  three = records["train3"]
  assert three.image == png(3)
  assert three.prompts == ("prompt 0 of 3", "prompt 1 of 3", "prompt 2 of 3")
  assert three.captions == ("caption 3",)
  assert three.questions == (("how many", "3"),) * 2
  assert three.edit == ("make it red", png(103))
  assert (three.scene, three.edit_scene) == ("before 3", "after 3")
  assert three.moments is None
  assert records["train0"].prompts == () and records["train0"].edit is None
  assert source.indices("edit").tolist() == [0, 1, 2, 3, 4]


def test_array_record_splits_and_limit(world):
  path = "world_toy/1.0.0"
  assert len(open_(world, "array_record", path, split="validation")) == 2
  assert len(open_(world, "array_record", path, split="train[:60%]")) == 3
  source = open_(world, "array_record", path, limit=2)
  assert len(source) == 2 and source.indices("t2i").tolist() == [0, 1]
  with pytest.raises(IndexError):
    source[2]
  with pytest.raises(ValueError, match="nowhere"):
    open_(world, "array_record", path, split="nowhere")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  """The folder of a data set of two images."""
  feature = tfds.features
  features = {"image": feature.Image(encoding_format="png")}

  def examples(_):
    return [{"image": io.BytesIO(png(i))} for i in range(2)]

  root = tmp_path_factory.mktemp("plain")
  prepare(root, "DamagedToy", features, examples)
  return root / "damaged_toy"


def test_array_record_of_image_and_captions_only(tmp_path):
  feature = tfds.features
  features = {
    "image": feature.Image(encoding_format="png"),
    "image/id": np.int64,
    "captions": feature.Sequence({"id": np.int64, "text": feature.Text()}),
    "objects": feature.Sequence({"bbox": feature.BBoxFeature()}),
  }

  def examples(_):
    for i in range(3):
      box = feature.BBox(0.0, 0.0, 1.0, 1.0)
      yield {
        "image": io.BytesIO(png(i)),
        "image/id": i,
        "captions": [{"id": k, "text": f"{i}-{k}"} for k in range(2)],
        "objects": [{"bbox": box}],
      }

  prepare(tmp_path, "PlainToy", features, examples)
  source = open_(tmp_path, "array_record", "plain_toy")
  texts = {source[i].captions for i in range(3)}
  assert texts == {(f"{i}-0", f"{i}-1") for i in range(3)}
  assert source[0].questions == () and source[0].edit is None
  assert source[1].id == "1"
  assert source.indices("edit").size == 0


def cut(path):
  path.write_bytes(path.read_bytes()[:-10])


def more(path):
  path.write_text(path.read_text().replace('"2"', '"9999"'))


@pytest.mark.parametrize(
  "name, damage, message",
  [
    ("*train.array*", lambda p: p.unlink(), "no whole shard"),
    ("*train.array*", lambda p: p.write_bytes(b""), "no whole shard"),
    ("*train.array*", lambda p: p.write_bytes(b"junk" * 999), "no whole shard"),
    ("*train.array*", cut, "no whole shard"),
    # Reading beyond a shard's end ends the process, without a word.
    ("dataset_info.json", more, "has 2 records, its data set says 9999"),
    ("dataset_info.json", lambda p: p.write_text(""), "no data set that TFDS"),
    ("dataset_info.json", lambda p: p.write_text("[]"), "no data set that"),
    ("features.json", lambda p: p.write_text("{}"), "no data set that TFDS"),
    ("features.json", lambda p: p.unlink(), "no data set that TFDS can open"),
  ],
)
def test_a_damaged_array_record_data_set_is_refused(
  plain, tmp_path, name, damage, message
):
  shutil.copytree(plain, tmp_path / "set")
  (file,) = (tmp_path / "set").rglob(name)
  damage(file)
  with pytest.raises(ValueError, match=message) as info:
    open_(tmp_path, "array_record", "set")
  assert str(tmp_path) in str(info.value) and "\n" not in str(info.value)


def test_records_without_their_image_are_bad(plain, tmp_path, monkeypatch):
  source = open_(plain.parent, "array_record", plain.name)
  reader = source._reader
  for data in (b"", b"junk", b"\xff" * 9):
    monkeypatch.setattr(reader, "_data", [data])
    with pytest.raises(sources.BadRecord, match="record 0: "):
      source[0]


def test_array_record_directory_must_be_one_data_set(tmp_path):
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="0 prepared"):
    open_(tmp_path, "array_record", "empty")


# JSONL


@pytest.fixture
def jsonl(tmp_path):
  for i in range(3):
    (tmp_path / "images").mkdir(exist_ok=True)
    (tmp_path / "images" / f"{i}.png").write_bytes(png(i))
  lines = [
    '{"image": "images/0.png", "prefix": "", "suffix": "a red circle"}',
    '{"image": "images/1.png", "suffix": "zwei grüne Sterne"}',
    "",
    '{"image": "images/2.png", "prefix": "caption en", "suffix": "a star"}',
    '{"image": "images/0.png", "prefix": "how many?", "suffix": "one"}',
    "{broken",
    '{"image": "images/0.png", "prefix": "why?"}',
    '["no", "object"]',
    '{"image": 3, "suffix": "x"}',
    '{"prefix": "how are you?", "suffix": "well"}',
    '{"image": "images/9.png", "prefix": "", "suffix": "missing"}',
  ]
  (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
  return tmp_path


def test_jsonl_captions_and_questions(jsonl):
  source = open_(jsonl, "jsonl", "train.jsonl")
  assert len(source) == 6
  assert [source[i].captions for i in range(4)] == [
    ("a red circle",),
    ("zwei grüne Sterne",),
    ("a star",),
    (),
  ]
  assert source[3].questions == (("how many?", "one"),)
  assert source[2].image == png(2) and source[3].image == png(0)
  assert source[4].image == b""
  assert source[3].id.endswith("train.jsonl:5")


def test_jsonl_indices_by_task(jsonl):
  source = open_(jsonl, "jsonl", "train.jsonl")
  want = dict(
    t2i=[0, 1, 2, 5],
    i2t=[0, 1, 2, 3, 5],
    text=[0, 1, 2, 3, 4, 5],
    image=[0, 1, 2, 3, 5],
    edit=[],
  )
  for task, indices in want.items():
    assert source.indices(task).tolist() == indices, task


def test_jsonl_bad_lines_are_named(jsonl, caplog):
  with caplog.at_level("WARNING", logger="absl"):
    source = open_(jsonl, "jsonl", "train.jsonl")
  numbers = [entry.split("jsonl:")[1].split(":")[0] for entry in source.bad]
  assert numbers == ["6", "7", "8", "9"]
  assert "no suffix" in source.bad[1]
  assert "train.jsonl:6" in caplog.text


def test_jsonl_missing_image_is_a_bad_record(jsonl):
  source = open_(jsonl, "jsonl", "train.jsonl")
  with pytest.raises(sources.BadRecord, match=r"9\.png"):
    source[5]


def test_jsonl_split_in_the_path(jsonl):
  source = open_(jsonl, "jsonl", "{split}.jsonl", split="train", limit=3)
  assert len(source) == 3 and source.indices("i2t").tolist() == [0, 1, 2]


# COCO


@pytest.fixture
def coco(tmp_path):
  (tmp_path / "annotations").mkdir()
  (tmp_path / "train").mkdir()
  for i in range(2):
    (tmp_path / "train" / f"{i}.png").write_bytes(png(i))
  content = dict(
    images=[dict(id=10 + i, file_name=f"{i}.png") for i in range(3)],
    annotations=[
      dict(image_id=10, id=1, caption=" a "),
      dict(image_id=11, id=2, caption="b"),
      dict(image_id=10, id=3, caption="c"),
      dict(image_id=99, id=4, caption="nowhere"),
      dict(image_id=11, id=5),
    ],
  )
  path = tmp_path / "annotations" / "captions_train.json"
  path.write_text(json.dumps(content))
  return tmp_path


def test_coco(coco):
  path = "annotations/captions_{split}.json:../{split}"
  source = open_(coco, "coco", path)
  assert len(source) == 3
  assert source[0] == sources.Record("10", png(0), captions=("a", "c"))
  assert source[1].captions == ("b",)
  assert source.indices("t2i").tolist() == [0, 1]
  assert source.indices("image").tolist() == [0, 1, 2]
  assert source.indices("edit").size == 0
  assert len(source.bad) == 2 and "annotations[3]" in source.bad[0]
  with pytest.raises(sources.BadRecord):
    source[2]


def test_coco_images_beside_the_annotations(coco):
  (coco / "annotations" / "0.png").write_bytes(png(7))
  source = open_(coco, "coco", "annotations/captions_train.json")
  assert source[0].image == png(7)


def test_coco_of_another_shape_is_refused(tmp_path):
  (tmp_path / "a.json").write_text('{"images": []}')
  with pytest.raises(ValueError, match="no COCO captions file"):
    open_(tmp_path, "coco", "a.json")
  (tmp_path / "a.json").write_text("{")
  with pytest.raises(ValueError, match="no COCO captions file"):
    open_(tmp_path, "coco", "a.json")


# all formats


@pytest.mark.parametrize("format", ["array_record", "jsonl", "coco"])
def test_missing_path_names_the_keys(tmp_path, format):
  config = SourceConfig(format=format, path="nothing.json")
  with pytest.raises(FileNotFoundError) as info:
    sources.open_source(config, str(tmp_path), PREFIX, "data.eval.x")
  for part in ("nothing.json", "data.eval.x.path", "data.root"):
    assert part in str(info.value)


def test_sources_pickle(world, jsonl, coco):
  for root, format, path in (
    (world, "array_record", "world_toy"),
    (jsonl, "jsonl", "train.jsonl"),
    (coco, "coco", "annotations/captions_train.json:../train"),
  ):
    source = open_(root, format, path)
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == len(source) and copy[1] == source[1]
    assert copy.indices("t2i").tolist() == source.indices("t2i").tolist()


# moments


def moments(count):
  rng = np.random.default_rng(0)
  return [rng.normal(size=(2, 3, 4)).astype(np.float32) for _ in range(count)]


def test_moments_round_trip(jsonl):
  arrays = moments(6)
  path = jsonl / "cache" / "moments"
  assert cached.write_cached(path, iter(arrays)) == 6
  assert [p.name for p in path.parent.iterdir()] == ["moments"]
  reader = cached.CachedReader(str(path))
  assert len(reader) == 6 and reader.shape == (2, 3, 4)
  source = open_(jsonl, "jsonl", "train.jsonl", moments="cache/moments")
  for i in (4, 0, 2):
    np.testing.assert_array_equal(
      source[i].moments, arrays[i].astype(np.float16)
    )
  copy = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(copy[3].moments, source[3].moments)


def test_codes_round_trip(tmp_path):
  codes = [np.array([0, 65535, i], np.int32) for i in range(3)]
  path, unread = str(tmp_path / "codes"), None
  assert cached.write_cached(path, [unread, *codes], np.uint16) == 4
  reader = cached.CachedReader(path)
  assert len(reader) == 4 and reader.shape == (3,)
  for i, row in enumerate(codes, 1):
    assert reader[i].dtype == np.uint16
    np.testing.assert_array_equal(reader[i], row)
  with pytest.raises(sources.BadRecord, match="decoded"):
    reader[0]


@pytest.mark.parametrize(
  "codes, words",
  [
    ([np.array([1, 70_000])], "image 0 is .*beyond uint16"),
    ([np.array([-1, 0])], "image 0 is .*beyond uint16"),
    ([np.array([0.5, 1.0])], "image 0 is .*beyond uint16"),
    ([np.array([1, 2]), np.array([1])], r"image 1 is .*\(1,\): need \[N\]"),
    ([np.zeros((1, 1, 2))], r"need \[N\]"),
  ],
)
def test_what_are_no_codes_is_refused(tmp_path, codes, words):
  with pytest.raises(ValueError, match=words):
    cached.write_cached(tmp_path / "codes", codes, np.uint16)
  assert not list(tmp_path.iterdir())


def test_moments_are_opened_on_demand_only(jsonl):
  config = SourceConfig("jsonl", "train.jsonl", moments="not_yet")
  source = sources.open_source(config, str(jsonl), PREFIX)
  assert source.moments is None and source[0].moments is None
  with pytest.raises(FileNotFoundError, match="moments='not_yet'"):
    sources.open_source(config, str(jsonl), PREFIX, moments=True)


@pytest.mark.parametrize("count", [5, 7])
def test_moments_of_another_count_are_refused(jsonl, count):
  cached.write_cached(jsonl / "m", moments(count))
  with pytest.raises(ValueError, match=f"holds {count} records"):
    open_(jsonl, "jsonl", "train.jsonl", moments="m")


def test_moments_of_a_limited_source(jsonl):
  cached.write_cached(jsonl / "m", moments(2))
  source = open_(jsonl, "jsonl", "train.jsonl", moments="m", limit=2)
  assert source[1].moments is not None


def test_moments_of_an_undecodable_image(jsonl):
  arrays = [None, *moments(5)]
  cached.write_cached(jsonl / "m", arrays)
  source = open_(jsonl, "jsonl", "train.jsonl", moments="m")
  assert source.moments.shape == (2, 3, 4)
  with pytest.raises(sources.BadRecord, match="decoded"):
    source[0]
  assert source[1].moments is not None


def test_damaged_moments_are_bad_records(jsonl):
  cached.write_cached(jsonl / "m", moments(6))
  source = open_(jsonl, "jsonl", "train.jsonl", moments="m")
  whole = source.moments._data[0]
  other = b"UFM1" + struct.pack("<3I", 3, 2, 4) + whole[16:]
  for data in (b"", b"UFM1", b"junk" * 9, whole[:-2], whole + b"00", other):
    source.moments._data = [data]
    with pytest.raises(sources.BadRecord, match="cached moments 0"):
      source[0]


def test_unusable_moments(tmp_path):
  with pytest.raises(ValueError, match="image 0 is .*beyond float16"):
    cached.write_cached(tmp_path / "m", [np.full((1, 1, 2), 1e6)])
  with pytest.raises(ValueError, match=r"image 0 .*need \[h, w, 2c\]"):
    cached.write_cached(tmp_path / "m", [np.zeros((2, 2))])
  with pytest.raises(ValueError, match=r"image 1 .*the first, \(2, 3, 4\)"):
    cached.write_cached(tmp_path / "m", [*moments(1), np.zeros((1, 1, 2))])
  assert not list(tmp_path.iterdir())
  (tmp_path / "junk").write_bytes(b"junk" * 1000)
  with pytest.raises(ValueError, match="no cached moments"):
    cached.CachedReader(str(tmp_path / "junk"))
  cached.write_cached(tmp_path / "none", [None])
  with pytest.raises(ValueError, match="no cached moments"):
    cached.CachedReader(str(tmp_path / "none"))
