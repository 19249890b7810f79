"""Data sets as `datasets` saves them, and rows with several images."""

import json
import pickle

import pyarrow as pa

from tests.data.test_bad_data import open_, png, read, refused
from tests.data.test_parquet import IMAGE, cell, write
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data import identity

TURNS = pa.struct([("user", pa.string()), ("assistant", pa.string())])


def save(folder, columns, types=None, features=None, rows_a_batch=2):
  """As save_to_disk: two files, record batches, state and info."""
  folder.mkdir(parents=True, exist_ok=True)
  arrays = {
    name: pa.array(values, (types or {}).get(name, IMAGE if name == "image"
                                             else None))
    for name, values in columns.items()
  }  # fmt: skip
  table, names = pa.table(arrays), []
  half = -(-len(table) // 2)
  for k, part in enumerate((table[:half], table[half:])):
    names.append(f"data-{k:05d}-of-00002.arrow")
    with pa.OSFile(str(folder / names[-1]), "wb") as file:
      with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(part, max_chunksize=rows_a_batch)
  state = {"_data_files": [{"filename": name} for name in names],
           "_indices_data_files": None}  # fmt: skip
  (folder / "state.json").write_text(json.dumps(state))
  info = json.dumps({"features": features or {}})
  (folder / "dataset_info.json").write_text(info)


def five(**changes):
  return (
    dict(
      image=[cell(png(i)) for i in range(5)],
      text=[f"text {i}" for i in range(5)],
    )
    | changes
  )


def test_rows_of_all_files_and_batches(tmp_path):
  save(tmp_path / "d", five())
  source = open_(tmp_path, "arrow", "d")
  assert len(source) == 5 and not source.bad
  for i in (4, 0, 2, 3, 1):
    assert source[i].image == png(i) and source[i].captions == (f"text {i}",)
  assert source[3].id == "d:3"
  assert len(source.indices("t2i")) == 5 and not len(source.indices("edit"))
  assert pickle.loads(pickle.dumps(source))[3] == source[3]
  config = SourceConfig("arrow", "d")
  before = identity.of_source(config, str(tmp_path))
  assert before["files"] == 2
  save(tmp_path / "d", five(text=["x"] * 5))
  assert identity.of_source(config, str(tmp_path)) != before
  assert open_(tmp_path, "arrow", "d")[4].captions == ("x",)


def test_splits_and_class_labels(tmp_path):
  names = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
  for split, labels in (("train", [0, 1, None]), ("test", [1, 1, 7])):
    columns = dict(image=[cell(png(i)) for i in range(3)], label=labels)
    save(tmp_path / "d" / split, columns, features=names)
  (tmp_path / "d" / "dataset_dict.json").write_text(
    '{"splits": ["train", "test"]}'
  )
  source = open_(tmp_path, "arrow", "d", text="label")
  assert [r.captions for r in read(source)[0]] == [("cat",), ("dog",), ("",)]
  good, bad = read(open_(tmp_path, "arrow", "d", text="label", split="test"))
  assert len(good) == 2 and bad == ["test:2: label 7 is none of 2 classes"]
  text = refused(tmp_path, "arrow", "d", text="label", split="dev")
  assert "split 'dev': it has train, test" in text


def test_rows_with_several_images_and_turns(tmp_path):
  """As The Cauldron's, in Arrow and in Parquet."""
  said = [[{"user": "what?", "assistant": "a"}, {"user": "?",
           "assistant": "b"}], [{"user": "q", "assistant": " "}]]  # fmt: skip
  columns = dict(images=[[cell(png(0)), cell(png(1))], [cell(png(2))]],
                 texts=said)  # fmt: skip
  types = dict(images=pa.list_(IMAGE), texts=pa.list_(TURNS))
  save(tmp_path / "d", columns, types)
  write(tmp_path / "p.parquet", columns, types)
  for format, path in (("arrow", "d"), ("parquet", "p.parquet")):
    source = open_(tmp_path, format, path, image="images", text="texts")
    first = source[0]
    assert first.image == png(0) and first.more == (png(1),)
    assert first.questions == (("what?", "a"), ("?", "b"))
    assert first.captions == () and not len(source.indices("t2i"))
    assert "texts.assistant is empty" in read(source)[1][0]


def test_parquet_knows_class_labels_and_questions(tmp_path):
  noted = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
  columns = dict(image=[cell(png(i)) for i in range(2)], label=[1, 0],
                 ask=["a?", "b?"])  # fmt: skip
  table = pa.table({
    k: pa.array(v, IMAGE if k == "image" else None) for k, v in columns.items()
  })  # fmt: skip
  table = table.replace_schema_metadata({"huggingface": json.dumps(noted)})
  pa.parquet.write_table(table, tmp_path / "p.parquet")
  source = open_(tmp_path, "parquet", "p.parquet", text="label")
  assert [r.captions for r in read(source)[0]] == [("dog",), ("cat",)]
  named = dict(text="label", question="ask")
  source = open_(tmp_path, "parquet", "p.parquet", **named)
  assert source[1].questions == (("b?", "cat"),)


def test_images_that_are_paths_are_bad(tmp_path):
  images = [{"bytes": None, "path": "/etc/passwd"}, None, cell(png())]
  save(tmp_path / "d", dict(image=images, text=["a", "b", "c"]))
  good, bad = read(open_(tmp_path, "arrow", "d"))
  assert len(good) == 1
  assert "only the path '/etc/passwd': embed the files" in bad[0]
  assert bad[1] == "d:1: no encoded image in image"


def test_damage_is_named(tmp_path):
  save(tmp_path / "d", five())
  file = tmp_path / "d" / "data-00001-of-00002.arrow"
  whole = file.read_bytes()
  file.write_bytes(whole[: len(whole) // 2])
  text = refused(tmp_path, "arrow", "d")
  assert "data-00001-of-00002.arrow is no Arrow stream" in text
  file.unlink()
  assert "data-00001" in refused(tmp_path, "arrow", "d")
  state = tmp_path / "d" / "state.json"
  for content, words in (
    ("{", "is not JSON"),
    ("[]", "lists no data files"),
    ('{"_data_files": [{"filename": "../x.arrow"}]}', "lists no data files"),
    ('{"_data_files": [], "_indices_files": ["i"]}', "flatten_indices()"),
  ):
    state.write_text(content)
    text = refused(tmp_path, "arrow", "d")
    assert words in text and "state.json" in text
  state.unlink()
  assert "no state.json in it" in refused(tmp_path, "arrow", "d")


def test_false_offsets_are_bad_records(tmp_path):
  """They would lead out of the file, which pyarrow does not check itself."""
  save(tmp_path / "d", five(), rows_a_batch=4)
  file = tmp_path / "d" / "data-00000-of-00002.arrow"
  data = bytearray(file.read_bytes())
  texts = b"".join(n.to_bytes(4, "little") for n in (0, 6, 12, 18))
  place = data.index(texts)
  data[place + 8 : place + 12] = (1 << 30).to_bytes(4, "little")
  file.write_bytes(data)
  good, bad = read(open_(tmp_path, "arrow", "d"))
  assert len(good) == 3 and len(bad) == 2 and "unreadable" in bad[0]


def test_a_column_that_is_missing(tmp_path):
  save(tmp_path / "d", five())
  text = refused(tmp_path, "arrow", "d", text="caption")
  assert "lacks caption: expected the columns image, caption, found" in text
