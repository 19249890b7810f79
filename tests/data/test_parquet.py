"""Tiny files in the hub's layout: image structs, several row groups, shards."""

import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.systems.conftest import tiny
from unifluid_jax import systems
from unifluid_jax.core.config import ConfigError, SourceConfig
from unifluid_jax.data import pipeline, text
from unifluid_jax.data.records import BadRecord
from unifluid_jax.data.sources import parquet
from unifluid_jax.data.sources import source as sources

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(seed):
  pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def cell(data):
  return {"bytes": data, "path": None}


def write(path, columns, types=None, rows_a_group=2):
  """Columns by name; those called *image* are structs as the hub has them."""
  path.parent.mkdir(parents=True, exist_ok=True)
  arrays = {
    name: pa.array(
      values, (types or {}).get(name, IMAGE if "image" in name else None)
    )
    for name, values in columns.items()
  }
  pq.write_table(pa.table(arrays), path, row_group_size=rows_a_group)


def hq(rows, **changes):
  """Columns of UCSC-VLAA/HQ-Edit; row i holds images i and 100 + i."""
  columns = dict(
    input=[f"before {i}" for i in rows],
    input_image=[cell(png(i)) for i in rows],
    edit=[f"do {i}" for i in rows],
    inverse_edit=[f"undo {i}" for i in rows],
    output=[f"after {i}" for i in rows],
    output_image=[cell(png(100 + i)) for i in rows],
  )
  return columns | changes


def ultra(rows, **changes):
  """Columns of BleachNick/UltraEdit, masks and a similarity included."""
  columns = dict(
    clip_sim_source=[0.5 for _ in rows],
    source_image=[cell(png(i)) for i in rows],
    edited_image=[cell(png(100 + i)) for i in rows],
    mask_image=[cell(png(200)) for _ in rows],
    edit_prompt=[f"do {i}" for i in rows],
    source_caption=["" for _ in rows],
    target_caption=["" for _ in rows],
  )
  return columns | changes


def open_(root, format, path, **fields):
  config = SourceConfig(format=format, path=path, **fields)
  return sources.open_source(config, str(root), "caption en")


@pytest.fixture
def shards(tmp_path):
  """Rows 0 to 4 in the file that sorts first, 5 to 7 in the next."""
  write(tmp_path / "hq/train-00001-of-00002.parquet", hq(range(5, 8)))
  write(tmp_path / "hq/train-00000-of-00002.parquet", hq(range(5)))
  (tmp_path / "hq/README.md").touch()
  return tmp_path


def test_hq_edit_goes_both_ways(shards):
  source = open_(shards, "hq_edit", "hq")
  assert len(source) == 16 and source.bad == ()
  for i in range(8):
    there, back = source[2 * i], source[2 * i + 1]
    assert (there.image, there.edit) == (png(i), (f"do {i}", png(100 + i)))
    assert (back.image, back.edit) == (png(100 + i), (f"undo {i}", png(i)))
  assert source[13].id == "train-00001-of-00002.parquet:1:inverse_edit"
  assert source.indices("edit").tolist() == list(range(16))
  assert len(source.indices("image")) == 16
  assert not len(source.indices("t2i"))
  assert len(open_(shards, "hq_edit", "hq", limit=3)) == 3
  one = open_(shards, "hq_edit", "hq/train-{split}-of-00002.parquet",
              split="00001")  # fmt: skip
  assert one[0].edit[0] == "do 5"
  assert pickle.loads(pickle.dumps(source))[9] == source[9]


def test_ultra_edit(tmp_path):
  write(tmp_path / "u/data/FreeForm-0.parquet", ultra(range(3)))
  source = open_(tmp_path, "ultra_edit", "u")
  assert len(source) == 3
  assert source[2].image == png(2) and source[2].edit == ("do 2", png(102))


def test_images_as_plain_bytes(tmp_path):
  plain = dict(source_image=[png(1)], edited_image=[png(2)], edit_prompt=["do"])
  binary = dict.fromkeys(("source_image", "edited_image"), pa.binary())
  write(tmp_path / "u.parquet", plain, binary)
  assert open_(tmp_path, "ultra_edit", "u.parquet")[0].edit == ("do", png(2))


def test_one_row_group_is_read_once_and_no_other(shards, monkeypatch):
  read, original = [], pq.ParquetFile.read_row_group

  def spy(self, group, columns, **options):
    read.append((group, columns))
    return original(self, group, columns, **options)

  monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
  parquet._read_group.cache_clear()
  rows = parquet.Rows(str(shards / "hq"), ("edit",))
  assert not read
  assert [rows[i]["edit"] for i in (2, 3)] == ["do 2", "do 3"]
  assert read == [(1, ["edit"])]
  assert rows[7]["edit"] == "do 7" and read[1:] == [(1, ["edit"])]


def test_what_is_missing_is_named(tmp_path):
  write(tmp_path / "hq/a.parquet", hq([0]))
  columns = hq([0])
  del columns["inverse_edit"]
  write(tmp_path / "hq/b.parquet", columns)
  with pytest.raises(ValueError) as error:
    open_(tmp_path, "hq_edit", "hq")
  message = str(error.value)
  assert "b.parquet lacks inverse_edit" in message
  assert "input_image, edit, output_image, inverse_edit, found input" in message
  (tmp_path / "hq/b.parquet").write_bytes(b"PAR1 half a download")
  with pytest.raises(ValueError, match=r"b\.parquet is no Parquet file"):
    open_(tmp_path, "hq_edit", "hq")
  (tmp_path / "empty").mkdir()
  with pytest.raises(FileNotFoundError, match=r"no \.parquet file in"):
    open_(tmp_path, "hq_edit", "empty")
  with pytest.raises(FileNotFoundError, match=r"change data\.train"):
    open_(tmp_path, "hq_edit", "nowhere")


def test_a_damaged_row_group_spoils_its_rows_only(tmp_path):
  file = tmp_path / "hq.parquet"
  write(file, hq(range(4)))
  start = pq.ParquetFile(file).metadata.row_group(0).column(1)
  data = bytearray(file.read_bytes())
  first = start.dictionary_page_offset or start.data_page_offset
  data[first : first + 40] = bytes(40)
  file.write_bytes(data)
  source = open_(tmp_path, "hq_edit", "hq.parquet")
  with pytest.raises(BadRecord, match=r"hq\.parquet:1: unreadable"):
    source[2]
  assert source[4].edit == ("do 2", png(102))
  assert source[4].id == "hq.parquet:2:edit"


def test_the_loader_replaces_bad_rows(tmp_path):
  """An image that is none, a null image and a null instruction, of 40 rows."""
  rows = list(range(40))
  columns = hq(rows)
  columns["output_image"][3] = cell(b"no image")
  columns["input_image"][5] = cell(None)
  columns["output_image"][6] = None
  columns["edit"][7] = None
  write(tmp_path / "hq/a.parquet", columns)
  sentences = [f"do undo {i}" for i in rows]
  tokenizer = text.train(sentences, tmp_path / "t.model", 24)

  def loader(share):
    config = tiny(
      batch=dict(t2i=0, i2t=0, edit=16, text=0),
      data__root=str(tmp_path),
      data__train=dict(hq=dict(format="hq_edit", path="hq", tasks=("edit",))),
      data__max_bad_share=share,
    )
    inputs = systems.build(config).inputs
    return pipeline.make_loader(config, inputs, tokenizer)

  with loader_closing(loader(0.5)) as batches:
    for _ in range(10):
      batch = next(batches)["edit"]
      image = batch["image.pixels"]
      assert batch["seen"].shape == image.shape == (16, 32, 32, 3)
      assert np.isfinite(image).all()
  with loader_closing(loader(0.01)) as batches:
    with pytest.raises(pipeline.DataError, match=r"a\.parquet:\d+"):
      for _ in range(20):
        next(batches)


class loader_closing:
  def __init__(self, loader):
    self._loader = loader

  def __enter__(self):
    return self._loader

  def __exit__(self, *_):
    self._loader.close()


# ------------------------------------------------------------ filter by score


def scored(tmp_path, scores, type=None):
  half = len(scores) // 2
  for name, part in (("a", slice(0, half)), ("b", slice(half, None))):
    rows = range(len(scores))[part]
    columns = dict(
      jpg=[png(i) for i in rows],
      caption=[f"text {i}" for i in rows],
      aesthetic=scores[part],
    )
    types = {"jpg": pa.binary(), "aesthetic": type or pa.float64()}
    write(tmp_path / f"set/{name}.parquet", columns, types)
  return dict(image="jpg", text="caption", score="aesthetic")


def test_rows_are_kept_by_score(tmp_path):
  names = scored(tmp_path, [6.5, 5.9, None, 6.0, 7.0, 1.0, float("nan")])
  source = open_(tmp_path, "parquet", "set", min_score=6.0, **names)
  got = [(r.image, r.captions) for r in (source[i] for i in range(len(source)))]
  assert got == [(png(i), (f"text {i}",)) for i in (0, 3, 4)]
  assert source.indices("t2i").tolist() == [0, 1, 2]
  assert not len(source.indices("edit"))
  whole = open_(tmp_path, "parquet", "set", **(names | {"score": ""}))
  assert len(whole) == 7 and whole[6].captions == ("text 6",)


def test_integer_scores(tmp_path):
  names = scored(tmp_path, [5, 6, 7], pa.int32())
  assert len(open_(tmp_path, "parquet", "set", min_score=6.0, **names)) == 2


def test_useless_filters_are_refused(tmp_path):
  names = scored(tmp_path, [1.0, 5.5, None])
  with pytest.raises(ValueError, match=r"none of 3 rows .*highest is 5\.5"):
    open_(tmp_path, "parquet", "set", min_score=6.0, **names)
  with pytest.raises(ValueError, match="lacks beauty: expected the columns"):
    open_(tmp_path, "parquet", "set", **(names | {"score": "beauty"}))
  with pytest.raises(ValueError, match="must be a number"):
    open_(tmp_path, "parquet", "set", **(names | {"score": "caption"}))
  with pytest.raises(ConfigError, match="needs format='parquet'"):
    tiny(data__train__shapes__score="aesthetic")


def test_jsonl_lines_are_kept_by_score(tmp_path):
  scores = [6.5, 5.9, None, 6, "7", 7.25]
  lines = [
    dict(image="a.png", prefix="", suffix=f"text {i}", aesthetic=s)
    for i, s in enumerate(scores)
  ]
  (tmp_path / "a.png").write_bytes(png(0))
  file = tmp_path / "set.jsonl"
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  source = open_(
    tmp_path, "jsonl", "set.jsonl", score="aesthetic", min_score=6.0
  )
  texts = [source[i].captions[0] for i in range(len(source))]
  assert texts == ["text 0", "text 3", "text 5"]
  assert [b.partition("jsonl:")[2][0] for b in source.bad] == ["3", "5"]
  assert len(open_(tmp_path, "jsonl", "set.jsonl")) == 6
  with pytest.raises(ValueError, match="no line has aesthetic >= 9"):
    open_(tmp_path, "jsonl", "set.jsonl", score="aesthetic", min_score=9.0)


def test_a_file_that_changed_is_read_anew(tmp_path):
  """In one process, as in a notebook: no row group of before is left."""
  for seed in (1, 2):
    columns = dict(image=[cell(png(seed))], text=[f"c{seed}"])
    write(tmp_path / "a.parquet", columns)
    record = open_(tmp_path, "parquet", "a.parquet")[0]
    assert (record.image, record.captions) == (png(seed), (f"c{seed}",))


def test_lists_may_be_large_ones(tmp_path):
  """Polars writes no others."""
  turn = {"user": "q", "assistant": "a"}
  types = {"images": pa.large_list(IMAGE), "texts": pa.large_list(
    pa.struct([("user", pa.string()), ("assistant", pa.string())])
  )}  # fmt: skip
  columns = dict(images=[[cell(png(0)), cell(png(1))]], texts=[[turn]])
  write(tmp_path / "a.parquet", columns, types)
  source = open_(tmp_path, "auto", "a.parquet")
  assert source[0].questions == (("q", "a"),) and len(source[0].more) == 1
  assert not len(source.indices("t2i")) and len(source.indices("i2t")) == 1
