"""Folders, COCO files and prepared data sets as sets of images."""

import io
import json
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from unifluid_jax.data import transforms
from unifluid_jax.evals.published import image_sets


def picture(seed, size=(6, 5)):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (*size, 3), np.uint8)


def save(path, seed, size=(6, 5)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(picture(seed, size)).save(path)


def pixels(images, crop=0):
  n = range(len(images.names))
  return [x for b in image_sets.batches(images, n, 2, crop, []) for _, x in b]


def test_folders_are_read_recursively_and_sorted(tmp_path):
  for seed, name in enumerate(["b/1.png", "a/x/2.PNG", "a/0.bmp"]):
    save(tmp_path / name, seed)
  (tmp_path / "a/notes.txt").write_text("no image")
  save(tmp_path / "a/.part.png", 9)
  images = image_sets.open_set(str(tmp_path))
  assert [n.removeprefix(f"{tmp_path}/") for n in images.names] == [
    "a/0.bmp", "a/x/2.PNG", "b/1.png",
  ]  # fmt: skip
  for got, seed in zip(pixels(images), (2, 1, 0), strict=True):
    np.testing.assert_array_equal(got, picture(seed))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_batches_hold_every_index_once_in_order(count):
  def read(i):
    file = io.BytesIO()
    Image.fromarray(np.full((2, 2, 3), i, np.uint8)).save(file, "PNG")
    return file.getvalue()

  images = image_sets.ImageSet("set", [str(i) for i in range(9)], read)
  indices = range(1, 9)[:count]
  got = []
  for batch in image_sets.batches(images, indices, 2, 0, []):
    assert all(x[0, 0, 0] == i for i, x in batch)
    got.append([i for i, _ in batch])
  assert sum(got, []) == list(indices)
  assert all(len(batch) == 2 for batch in got[:-1])


def test_crop_is_the_rule_of_training_images(tmp_path):
  save(tmp_path / "0.png", 0, (40, 50))
  images = image_sets.open_set(str(tmp_path))
  (got,) = pixels(images, crop=16)
  want = transforms.centre_crop_resize(picture(0, (40, 50)), 16)
  np.testing.assert_array_equal(got, want)


def fake_set(names, folder="a", other=()):
  def read(i):
    return b"other" if i in other else names[i].encode()

  full = [f"{folder}/{name}" for name in names]
  return image_sets.ImageSet(folder, full, read)


@pytest.mark.parametrize("count", [0, 2, 32, 33, 70, 1000])
def test_fingerprints_tell_sets_apart(count):
  names = [f"{i:04d}.png" for i in range(count)]
  first = image_sets.fingerprint(fake_set(names))
  assert len(first) == 16
  assert image_sets.fingerprint(fake_set(names, "b/c")) == first
  backwards = fake_set(names[::-1])
  assert image_sets.fingerprint(backwards) == first
  found = {first, image_sets.fingerprint(fake_set([*names, "x.png"]))}
  if count:
    found |= {
      image_sets.fingerprint(fake_set(["x.png", *names[1:]])),
      image_sets.fingerprint(fake_set(names, other=range(count))),
      image_sets.fingerprint(fake_set(names, other=[0])),
    }
  assert len(found) == (5 if count else 2)
  if 0 < count <= 32:
    last = image_sets.fingerprint(fake_set(names, other=[count - 1]))
    assert last != first


def test_a_fingerprint_reads_a_few_images():
  read = []
  names = [f"{i}" for i in range(1000)]
  images = image_sets.ImageSet("", names, lambda i: read.append(i) or b"")
  image_sets.fingerprint(images)
  assert 16 < len(set(read)) == len(read) <= 32


@pytest.mark.parametrize("damage", [b"", b"no image", None])
def test_a_damaged_file_is_named_and_left_out(tmp_path, damage, caplog):
  for i in range(3):
    save(tmp_path / f"{i}.png", i, (30, 30))
  whole = (tmp_path / "1.png").read_bytes()
  (tmp_path / "1.png").write_bytes(whole[:-40] if damage is None else damage)
  images = image_sets.open_set(str(tmp_path))
  with caplog.at_level("WARNING", logger="absl"):
    found = list(image_sets.batches(images, range(3), 1, 0, bad := []))
  assert [i for batch in found for i, _ in batch] == [0, 2]
  assert len(bad) == 1 and "1.png" in bad[0]
  assert re.search(r"left out .*1\.png: .*replace the file", caplog.text)
  with pytest.raises(ValueError, match=r"1\.png"):
    image_sets.decode(images, 1, 0)


def test_a_lost_file_is_named(tmp_path):
  images = image_sets.files_set("set", [str(tmp_path / "gone.png")])
  with pytest.raises(ValueError, match=r"gone\.png"):
    image_sets.decode(images, 0, 0)
  assert pixels(images) == [] and len(image_sets.fingerprint(images)) == 16


def coco(tmp_path, **entry):
  for seed in range(2):
    save(tmp_path / f"train/{seed}.png", seed)
  content = {
    "images": [{"id": 7, "file_name": "0.png"}, {"id": 9, "file_name": "1.png"}]
  }
  if entry:
    content["annotations"] = [entry]
  path = tmp_path / "notes/coco.json"
  path.parent.mkdir()
  path.write_text(json.dumps(content))
  return path


@pytest.mark.parametrize(
  "entry",
  [{}, {"image_id": 7, "caption": "a"}, {"image_id": 7, "category_id": 1}],
)
def test_coco_captions_instances_or_images_alone(tmp_path, entry):
  images = image_sets.open_set(f"{coco(tmp_path, **entry)}:../train")
  for got, seed in zip(pixels(images), (0, 1), strict=True):
    np.testing.assert_array_equal(got, picture(seed))


def test_coco_captions_belong_to_their_images(tmp_path):
  path = coco(tmp_path, image_id=9, caption=" a cat ")
  entries, folder = image_sets.read_coco(str(path))
  assert [e["captions"] for e in entries] == [[], ["a cat"]]
  assert folder == path.parent


def test_coco_of_another_shape_is_refused(tmp_path):
  path = tmp_path / "x.json"
  path.write_text(json.dumps({"images": [{"id": 1}]}))
  with pytest.raises(ValueError, match="no COCO captions or instances"):
    image_sets.open_set(str(path))
  path.write_text(json.dumps({"images": []}))
  with pytest.raises(ValueError, match="lists no images"):
    image_sets.open_set(str(path))


def prepare(tmp_path):
  """An ArrayRecord data set of images with captions, in two splits."""
  feature = tfds.features

  def examples(seeds):
    for seed in seeds:
      file = io.BytesIO()
      Image.fromarray(picture(seed)).save(file, "PNG")
      yield seed, dict(image=io.BytesIO(file.getvalue()), captions=["a"])

  features = feature.FeaturesDict(
    dict(
      image=feature.Image(encoding_format="png"),
      captions=feature.Sequence(feature.Text()),
    )
  )
  builder = type(
    "ImageSetToy",
    (tfds.core.GeneratorBasedBuilder,),
    dict(
      VERSION=tfds.core.Version("1.0.0"),
      _info=lambda self: tfds.core.DatasetInfo(builder=self, features=features),
      _split_generators=lambda self, manager: {
        "train": examples(range(3)),
        "validation": examples([10]),
      },
      _generate_examples=None,
      __module__=__name__,
    ),
  )
  builder(
    data_dir=str(tmp_path), file_format="array_record"
  ).download_and_prepare()


def test_prepared_data_sets(tmp_path):
  prepare(tmp_path)
  path = str(tmp_path / "image_set_toy")
  images = image_sets.open_set(path)
  assert len(images.names) == 3 and images.source == f"{path} train"
  # Prepared data sets shuffle their records.
  got = {x.tobytes() for x in pixels(images)}
  assert got == {picture(i).tobytes() for i in range(3)}
  (other,) = pixels(image_sets.open_set(path, "validation"))
  np.testing.assert_array_equal(other, picture(10))
  with pytest.raises(ValueError, match="split 'nowhere'"):
    image_sets.open_set(path, "nowhere")


def test_nothing_there(tmp_path):
  with pytest.raises(ValueError, match="holds no images"):
    image_sets.open_set(str(tmp_path))
  with pytest.raises(FileNotFoundError, match="no images at"):
    image_sets.open_set(str(tmp_path / "nowhere"))
  with pytest.raises(FileNotFoundError, match="no COCO file"):
    image_sets.open_set(str(tmp_path / "nowhere.json"))
