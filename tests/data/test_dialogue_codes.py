"""Codes of the images in dialogues, in files: written, read, refused."""

import dataclasses
import pickle
import struct

import numpy as np
import pytest

from tests.data.test_fields import encode, noise
from tests.systems import vargpt_tiny as vg
from unifluid_jax import systems
from unifluid_jax.codecs import cache, encoding
from unifluid_jax.core import telemetry
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.data import fields, pipeline, tasks
from unifluid_jax.data.dialogue import Dialogue, Features
from unifluid_jax.data.instructions import written
from unifluid_jax.data.records import BadRecord, Record, Turn
from unifluid_jax.data.sources import cached
from unifluid_jax.data.worlds import chats, shapes

COUNT = 20  # two of each sequence


class Words(vg.Words):
  """Every word is a token: the letters it has."""

  def encode(self, text):
    return [5 + len(word) for word in text.split()]


def codes_of(images):
  """[..., H, W, 3] → [..., N]: a codec that needs no network."""
  pixels = np.asarray(images)[..., ::7, 3, 0].repeat(4, axis=-1)[..., : vg.N]
  steps = np.arange(1, vg.N + 1)
  return np.int32(np.floor((pixels + 1) * 6 * steps)) % vg.CODES


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  root = tmp_path_factory.mktemp("d")
  chats.build(root / "shapes_dialogues", shapes.World(), COUNT)
  return root


def config_of(root, moments="", **changes):
  tree = vg.tiny_tree(
    batch=dict(t2i=0, i2t=0, text=0, dialogue=COUNT), text__dialogue=120,
    data__root=str(root), data__workers=0, data__threads=1, **changes,
  )  # fmt: skip
  tree.data.train.shapes_dialogues.moments = moments
  del tree.data.train["shapes"]
  return systems.resolve(tree)


def first_batch(config):
  loader = pipeline.make_loader(config, systems.build(config).inputs, Words())
  batch = next(loader)["dialogue"]
  loader.close()
  return batch


def encoded(config, row):
  """What `python -m unifluid_jax.encode` writes of the dialogues."""
  system, seen = systems.build(config), []

  def count(images):
    assert images.shape == (3, 24, 24, 3)
    seen.append((images.reshape(3, -1) != 0).any(axis=1).sum())
    return codes_of(images)

  job = encoding.Job(config, system.codec, [count], lambda line: None, 3)
  source = job.open(config.data.train["shapes_dialogues"])
  progress = telemetry.Progress("encode", 0, len(source))
  return list(job.encode(source, row, progress, range(len(source)))), seen


def test_files_give_the_codes_that_a_step_would(world):
  """In the same rows; of what is drawn alone, as nothing else is encoded."""
  config = config_of(world, "m")
  row = systems.build(config).inputs["dialogue"]["row"]
  assert row.file and row.which == "drawn"
  made, seen = encoded(config, row)
  drawn = [sum(k in chats.DRAWN for k in kinds) for kinds in chats.SEQUENCES]
  assert [len(codes) for codes in made] == drawn * 2
  assert 0 in drawn and 2 in drawn and sum(seen) == 2 * sum(drawn)
  cached.write_cached(world / "m", made, np.uint16, several=True)
  files, pixels = first_batch(config), first_batch(config_of(world))
  images = pixels.pop("row.codes.pixels")
  given = files.pop("row.codes")
  assert given.dtype == np.int32 and files.keys() == pixels.keys()
  for name in files:
    np.testing.assert_array_equal(files[name], pixels[name])
  counts = (files["row.cell"].max(axis=1) + 1) // vg.N
  assert counts.sum() == 2 * sum(drawn)
  for row_codes, row_images, n in zip(given, images, counts, strict=True):
    np.testing.assert_array_equal(row_codes[:n], codes_of(row_images[:n]))
    assert not row_codes[n:].any()


def test_systems_that_see_by_codes_have_all_images_in_files(world):
  row = Dialogue(120, vg.N, 24, "crop")
  made, _ = encoded(config_of(world), row)
  assert row.which == "all"
  images = [len(chats.record(shapes.World(), 0, i)[1]) for i in range(COUNT)]
  assert [len(codes) for codes in made] == images


def test_an_image_that_cannot_be_read_spoils_its_dialogue(world):
  folder = world / "broken"
  folder.mkdir()
  (folder / "bad.png").write_bytes(b"junk")
  (folder / "good.png").write_bytes(encode(noise(24, 24)))
  with written.list_file(folder / "list.json") as entries:
    for name in ("bad.png", "good.png"):
      messages, _ = chats.record(shapes.World(), 0, 0)  # draws one
      entries.add(written.entry(messages, [name]))
  config = config_of(
    world, data__train__shapes_dialogues__path="broken/list.json"
  )
  row = systems.build(config).inputs["dialogue"]["row"]
  (bad, good), _ = encoded(config, row)
  assert bad is None and good.shape == (1, vg.N)
  cached.write_cached(folder / "m", [bad, good], np.uint16, several=True)
  reader = cached.CachedReader(str(folder / "m"))
  with pytest.raises(BadRecord, match="could not be decoded"):
    reader[0]
  np.testing.assert_array_equal(reader[1], good)


# ------------------------------------------------------------------- the field


def image(i, role):
  return Turn(image=noise(8, 8, i), role=role, target=role == "assistant")


def test_a_row_has_the_codes_of_the_images_it_keeps():
  field = Dialogue(60, vg.N, 8, "crop", seen=Features(2, 1, 4, "crop"), most=1,
                   file=True)  # fmt: skip
  said = Turn("7 8", target=False, role="user")
  turns = (image(0, "user"), said, image(1, "assistant"), said,
           image(2, "assistant"))  # fmt: skip
  codes = np.arange(2 * vg.N, dtype=np.uint16).reshape(2, vg.N)
  record = Record("r", b"", dialogue=turns, moments=codes)
  rng = np.random.default_rng(0)
  example = tasks.dialogue(record, rng, tasks.Options(Words(), ""))
  rows = field.rows(example, None)
  assert list(rows) == list(field.shapes())
  for name, array in rows.items():
    assert (array.shape, array.dtype) == field.shapes()[name], name
  np.testing.assert_array_equal(rows["codes"], codes[:1])  # the last is cut
  assert (rows["cell"] >= 0).sum() == vg.N and (rows["feature"] >= 0).sum() == 2
  for wrong in (codes[:1], codes[0], codes[:, 1:], None):
    with pytest.raises(BadRecord, match=r"its images need \(2, 14\)"):
      field.rows(example._replace(codes=wrong), None)
  inputs = {"row": field}
  pixels = dataclasses.replace(field, file=False)
  assert pickle.loads(pickle.dumps(field)) == field
  assert fields.uncached(inputs, {})["row"] == pixels
  prompt = dataclasses.replace(pixels, prompt=True)
  assert fields.prompts(inputs, {})["row"] == prompt


# ------------------------------------------------------------------- the files


def test_codes_of_several_images_round_trip(tmp_path):
  path = str(tmp_path / "codes")
  codes = [np.full((n, 3), n, np.int32) for n in (0, 2, 0, 1)]
  assert cached.write_cached(path, [None, *codes], np.uint16, True) == 5
  reader = cached.CachedReader(path)
  assert len(reader) == 5 and reader.shape == (None, 3)
  for i, array in enumerate(codes, 1):
    assert reader[i].dtype == np.uint16
    np.testing.assert_array_equal(reader[i], array)
  with pytest.raises(BadRecord, match="could not be decoded"):
    reader[0]
  whole = reader._data[2]
  narrow = b"UFC3" + struct.pack("<3I", 3, 2, 1) + whole[16:]
  grid = b"UFC2" + whole[4:]
  for data in (whole[:-2], whole + b"00", narrow, grid):
    reader._data = [data]
    with pytest.raises(BadRecord, match="cached moments 0"):
      reader[0]


@pytest.mark.parametrize(
  "wrong", [np.zeros(3), np.zeros((1, 4)), np.zeros((1, 3, 1))]
)
def test_what_are_no_codes_of_several_images_is_refused(tmp_path, wrong):
  with pytest.raises(ValueError, match=r"image 1 .*need \[images, N\]"):
    codes = [np.zeros((2, 3)), wrong]
    cached.write_cached(tmp_path / "m", codes, np.uint16, several=True)
  assert not list(tmp_path.iterdir())


def test_files_of_another_kind_or_number_are_refused(world):
  cached.write_cached(world / "one", [np.zeros(vg.N)] * COUNT, np.uint16)
  config = config_of(world, "one")
  with pytest.raises(ValueError, match=r"are \(14,\), the model needs \(None"):
    first_batch(config)
  # Each record has other images than the file: all are bad.
  none = [np.zeros((3, vg.N))] * COUNT
  cached.write_cached(world / "none", none, np.uint16, several=True)
  with pytest.raises(pipeline.DataError, match="encode them anew"):
    first_batch(config_of(world, "none"))


def test_a_file_made_for_another_way_of_seeing_is_refused(world):
  """Of drawn images alone, where all have codes; and the reverse."""
  config = config_of(world, "seen")
  system, source = systems.build(config), config.data.train["shapes_dialogues"]
  row = cache.row_of(source, system.inputs)
  codec, path = system.codec, cache.path_of(config, source)
  note = cache.note_of(codec, source, "w", "d", row)
  assert note["images"] == "drawn"
  assert "images" not in cache.note_of(codec, source, "w", "d")
  assert "max_pixels" not in note
  assert cache.note_of(codec, source, "w", "d", row, 100)["max_pixels"] == 100
  made = {
    "codec": {"weights": "w"},
    "data": {"shapes_dialogues": {"digest": "d"}},
  }
  codes = [np.zeros((1, vg.N))]

  def write(note):
    return cache.write(
      path, note, len(codes), lambda _: codes, np.uint16, several=True
    )

  write(note)
  cache.check_cached(config, codec, system.inputs, made)
  other = cache.note_of(
    codec, source, "w", "d", dataclasses.replace(row, seen=None)
  )
  assert write(other) == "made anew, as images changed"
  with pytest.raises(ConfigError, match="from other images than .*encode"):
    cache.check_cached(config, codec, system.inputs, made)


def test_a_source_of_dialogues_serves_nothing_else_from_a_file():
  row = Dialogue(60, vg.N, 8, "crop")
  for served, found in ((("t2i", "dialogue"), row), (("dialogue",), None)):
    source = SourceConfig("jsonl", "a", tasks=served, moments="m")
    with pytest.raises(ConfigError, match="data.train.a has moments"):
      encoding.check_tasks("a", source, found)
    assert cache.row_of(source, {}) is None
  encoding.check_tasks("a", SourceConfig("jsonl", "a"), None)
