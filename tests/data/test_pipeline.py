import dataclasses
import io
import json
import multiprocessing
import os
import signal
import types

import numpy as np
import pytest
from PIL import Image

from configs.base import base, image_tokenizer
from tests import text_rows
from unifluid_jax import systems
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data import pipeline, text
from unifluid_jax.data.sources import cached

SIZE, VIT = 8, 4
NUMBERS = "zero one two three four five six seven eight nine".split()


def words(i):
  """Record i as text, digit by digit."""
  return " ".join(NUMBERS[int(d)] for d in f"{i:03d}")


def pixels(i):
  return np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def png(i):
  file = io.BytesIO()
  Image.fromarray(pixels(i)).save(file, "PNG")
  return file.getvalue()


def write(root, name, ids, question="", bad=()):
  """A JSONL source whose record i has image i and text words(i)."""
  lines = []
  for i in ids:
    file = root / f"{i}.png"
    file.write_bytes(b"junk" if i in bad else png(i))
    entry = {"image": file.name, "prefix": question, "suffix": words(i)}
    lines.append(json.dumps(entry))
  (root / f"{name}.jsonl").write_text("\n".join(lines))


def jsonl(name, **fields):
  return SourceConfig("jsonl", f"{name}.jsonl", **fields)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("t") / "t.model"
  sentences = [words(i) for i in range(0, 1000, 7)] + ["caption en", "what"]
  return text.train(sentences, path, 64)


def make_config(root, train, batch, system="unifluid", **changes):
  c = base()
  c.data.root = str(root)
  c.data.train = {
    name: dataclasses.asdict(source) for name, source in train.items()
  }
  c.data.workers, c.data.threads = 0, 2
  c.text.update(prompt=8, prefix=8, suffix=6)
  c.model.image_size, c.model.vit.image_size = SIZE * 2, VIT
  c.model.vit.patch = 2
  c.data.update(changes.pop("data", {}))
  c.update(changes)
  if system == "vae":
    image_tokenizer(c)
  c.batch = dict.fromkeys(c.batch, 0) | batch
  config = systems.resolve(c)
  model = dataclasses.replace(config.model, image_size=SIZE)
  return dataclasses.replace(config, model=model)


def make_loader(config, tokenizer, **where):
  inputs = systems.build(config).inputs
  return pipeline.make_loader(config, inputs, tokenizer, **where)


def ids_of(rows, tokenizer):
  """The record numbers that a batch's text rows spell."""
  decoded = [tokenizer.decode(row).split() for row in rows]
  return [int("".join(str(NUMBERS.index(w)) for w in row)) for row in decoded]


def take(loader, count):
  try:
    return [next(loader) for _ in range(count)]
  finally:
    loader.close()


def assert_same(a, b):
  assert list(a) == list(b)
  for task in a:
    assert list(a[task]) == list(b[task])
    for name, array in a[task].items():
      np.testing.assert_array_equal(array, b[task][name])


@pytest.fixture
def two_tasks(tmp_path):
  write(tmp_path, "captions", range(30))
  write(tmp_path, "questions", range(100, 117), question="what")
  train = dict(
    captions=jsonl("captions"), questions=jsonl("questions", tasks=("i2t",))
  )
  return tmp_path, train


def test_batch_contents(two_tasks, tokenizer):
  config = make_config(*two_tasks, dict(t2i=4, i2t=6))
  loader = make_loader(config, tokenizer)
  assert loader.step == 0
  batch = take(loader, 1)[0]
  assert loader.step == 1 and list(batch) == ["t2i", "i2t"]
  drawn, seen = batch["t2i"], batch["i2t"]
  assert set(drawn) == {"prompt", "image.pixels"}
  assert set(seen) == {"seen", "prefix", "suffix"}
  assert drawn["prompt"].shape == (4, 8) and drawn["prompt"].dtype == np.int32
  assert drawn["image.pixels"].shape == (4, SIZE, SIZE, 3)
  assert seen["seen"].shape == (6, VIT, VIT, 3)
  assert seen["seen"].dtype == drawn["image.pixels"].dtype == np.float32
  assert seen["prefix"].shape == (6, 8) and seen["suffix"].shape == (6, 6)
  ids = ids_of(drawn["prompt"], tokenizer)
  for i, image in zip(ids, drawn["image.pixels"], strict=True):
    np.testing.assert_array_equal(image, pixels(i) / np.float32(127.5) - 1)
  ids = ids_of(seen["suffix"], tokenizer)
  for i, prefix in zip(ids, seen["prefix"], strict=True):
    question = "what" if i >= 100 else "caption en"
    np.testing.assert_array_equal(
      prefix, text_rows.prefix(tokenizer, question, 8)
    )


def test_every_epoch_shows_every_record_once(tmp_path, tokenizer):
  write(tmp_path, "a", range(12))
  config = make_config(tmp_path, dict(a=jsonl("a")), dict(t2i=4))
  batches = take(make_loader(config, tokenizer), 6)
  ids = [ids_of(b["t2i"]["prompt"], tokenizer) for b in batches]
  first, second = sum(ids[:3], []), sum(ids[3:], [])
  assert sorted(first) == sorted(second) == list(range(12))
  assert first != second and first != sorted(first)


@pytest.mark.parametrize("k", [1, 5])
def test_resume_is_exact(two_tasks, tokenizer, k):
  config = make_config(*two_tasks, dict(t2i=4, i2t=6), data=dict(flip=True))
  whole = take(make_loader(config, tokenizer), k + 3)
  loader = make_loader(config, tokenizer, start_step=k)
  assert loader.step == k
  for a, b in zip(whole[k:], take(loader, 3), strict=True):
    assert_same(a, b)


@pytest.mark.slow
def test_worker_processes_change_nothing(two_tasks, tokenizer):
  root, train = two_tasks
  one = make_config(root, train, dict(t2i=4, i2t=6), data=dict(flip=True))
  two = make_config(
    root, train, dict(t2i=4, i2t=6), data=dict(flip=True, workers=2)
  )
  want = take(make_loader(one, tokenizer), 6)
  others = multiprocessing.active_children()
  loader = make_loader(two, tokenizer, start_step=1)
  got = [next(loader), next(loader)]  # one of each worker: both are there
  # Ctrl-C at a terminal reaches all processes; the last steps need batches.
  workers = [p for p in multiprocessing.active_children() if p not in others]
  for worker in workers:
    os.kill(worker.pid, signal.SIGINT)
  got += [next(loader) for _ in range(3)]
  assert len(workers) == 2 and all(w.is_alive() for w in workers)
  loader.close()
  for a, b in zip(want[1:], got, strict=True):
    assert_same(a, b)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_split_the_global_batch(two_tasks, tokenizer, count):
  config = make_config(*two_tasks, dict(t2i=4, i2t=8), data=dict(flip=True))
  whole = take(make_loader(config, tokenizer), 3)
  parts = [
    take(
      make_loader(config, tokenizer, process_index=p, process_count=count),
      3,
    )
    for p in range(count)
  ]
  for step, batch in enumerate(whole):
    joined = {
      task: {
        name: np.concatenate([parts[p][step][task][name] for p in range(count)])
        for name in arrays
      }
      for task, arrays in batch.items()
    }
    assert_same(batch, joined)


def test_unsuitable_arguments_are_refused(two_tasks, tokenizer):
  config = make_config(*two_tasks, dict(t2i=4))
  with pytest.raises(ValueError, match="batch.t2i=4 is not divisible by 3"):
    make_loader(config, tokenizer, process_count=3)
  with pytest.raises(ValueError, match="needs a tokenizer"):
    make_loader(config, None)


def test_seeds(two_tasks, tokenizer):
  def first(seed):
    config = make_config(*two_tasks, dict(t2i=8, i2t=8), seed=seed)
    return take(make_loader(config, tokenizer), 1)[0]

  assert_same(first(3), first(3))
  a, b = first(3), first(4)
  assert not np.array_equal(a["t2i"]["prompt"], b["t2i"]["prompt"])
  # Tasks that share a source see it in different orders.
  captions = ids_of(a["i2t"]["suffix"], tokenizer)
  assert ids_of(a["t2i"]["prompt"], tokenizer)[: len(captions)] != captions


def test_mixing_weights(tmp_path, tokenizer):
  write(tmp_path, "a", range(20))
  write(tmp_path, "b", range(100, 103))
  write(tmp_path, "c", range(200, 203))
  train = dict(a=jsonl("a", weight=3.0), b=jsonl("b"), c=jsonl("c", weight=0.0))
  config = make_config(tmp_path, train, dict(t2i=10))
  batches = take(make_loader(config, tokenizer), 8)
  ids = np.array([ids_of(b["t2i"]["prompt"], tokenizer) for b in batches])
  assert (ids < 100).sum() == 60 and (ids < 200).all()


def test_limit(tmp_path, tokenizer):
  write(tmp_path, "a", range(20))
  config = make_config(tmp_path, dict(a=jsonl("a", limit=3)), dict(t2i=6))
  batch = take(make_loader(config, tokenizer), 1)[0]
  assert set(ids_of(batch["t2i"]["prompt"], tokenizer)) == {0, 1, 2}


def test_bad_record_gives_way_to_the_next(tmp_path, tokenizer, caplog):
  write(tmp_path, "a", range(10), bad=(4, 5, 9))
  config = make_config(
    tmp_path, dict(a=jsonl("a")), dict(t2i=10), data=dict(max_bad_share=0.9)
  )
  with caplog.at_level("WARNING", logger="absl"):
    batches = take(make_loader(config, tokenizer), 3)
  for batch in batches:
    ids = ids_of(batch["t2i"]["prompt"], tokenizer)
    # 4 and 5 are read as 6, 9 as 0, wherever the shuffle puts them.
    assert sorted(ids) == [0, 0, 1, 2, 3, 6, 6, 6, 7, 8]
  named = [r.message for r in caplog.records if "replaced" in r.message]
  assert len(named) == 3 and any("a[4]" in m for m in named)


def test_bad_records_do_not_depend_on_the_run(tmp_path, tokenizer):
  write(tmp_path, "a", range(10), bad=(4, 5))
  config = make_config(
    tmp_path, dict(a=jsonl("a")), dict(t2i=5), data=dict(max_bad_share=0.9)
  )
  whole = take(make_loader(config, tokenizer), 4)
  rest = take(make_loader(config, tokenizer, start_step=2), 2)
  for a, b in zip(whole[2:], rest, strict=True):
    assert_same(a, b)


def test_too_many_bad_records_stop_the_run(tmp_path, tokenizer):
  write(tmp_path, "a", range(20), bad=(4, 7))
  config = make_config(
    tmp_path, dict(a=jsonl("a")), dict(t2i=20), data=dict(max_bad_share=0.05)
  )
  loader = make_loader(config, tokenizer)
  # 22 records are looked at per epoch: 100 are not seen before the fifth.
  for _ in range(4):
    next(loader)
  with pytest.raises(pipeline.DataError, match=r"10 of 110 .*a\[[47]\]"):
    next(loader)
  loader.close()


def test_one_bad_record_is_tolerated_unless_the_share_is_zero(
  tmp_path, tokenizer
):
  write(tmp_path, "a", range(200), bad=(7,))
  train = dict(a=jsonl("a"))

  def run(share):
    config = make_config(
      tmp_path, train, dict(t2i=100), data=dict(max_bad_share=share)
    )
    take(make_loader(config, tokenizer), 2)

  run(0.001)
  with pytest.raises(pipeline.DataError, match="1 of 101"):
    run(0.0)


def test_a_source_of_bad_records_alone_stops_at_once(tmp_path, tokenizer):
  write(tmp_path, "a", range(3), bad=(0, 1, 2))
  config = make_config(
    tmp_path, dict(a=jsonl("a")), dict(t2i=2), data=dict(max_bad_share=1.0)
  )
  loader = make_loader(config, tokenizer)
  with pytest.raises(pipeline.DataError, match="data.train.a yields no"):
    next(loader)
  loader.close()


def test_bad_lines_count_at_opening(tmp_path, tokenizer):
  write(tmp_path, "a", range(150))
  with (tmp_path / "a.jsonl").open("a") as file:
    file.write("\nbroken\nbroken")
  train = dict(a=jsonl("a"))
  config = make_config(
    tmp_path, train, dict(t2i=2), data=dict(max_bad_share=0.01)
  )
  with pytest.raises(pipeline.DataError, match=r"2 of 152 .*jsonl:151"):
    make_loader(config, tokenizer)
  config = make_config(
    tmp_path, train, dict(t2i=2), data=dict(max_bad_share=0.02)
  )
  take(make_loader(config, tokenizer), 1)


def test_texts_and_paths_that_are_none_are_left_out(tmp_path, tokenizer):
  write(tmp_path, "a", range(200))
  bad = [{"image": "0.png", "suffix": "\ud800"},
         {"image": "a\0", "suffix": "x"},
         {"image": "0.png", "suffix": 3}]  # fmt: skip
  with (tmp_path / "a.jsonl").open("a") as f:
    f.write("".join("\n" + json.dumps(entry) for entry in bad))
  train = dict(a=jsonl("a"))
  data = dict(max_bad_share=0.02)
  config = make_config(tmp_path, train, dict(t2i=4, i2t=4), data=data)
  batches = take(make_loader(config, tokenizer), 60)
  assert len(batches) == 60
  config = make_config(tmp_path, train, dict(t2i=4), data={})
  with pytest.raises(pipeline.DataError, match=r"3 of 203 .*a\.jsonl:201: "):
    make_loader(config, tokenizer)


def test_large_images_are_bad_records(tmp_path, tokenizer):
  write(tmp_path, "a", range(4))
  data = dict(max_pixels=SIZE * SIZE - 1)
  config = make_config(tmp_path, dict(a=jsonl("a")), dict(t2i=1), data=data)
  with pytest.raises(pipeline.DataError, match=r"data\.max_pixels=63"):
    take(make_loader(config, tokenizer), 1)


def test_a_source_without_records_is_named(tmp_path, tokenizer):
  (tmp_path / "a.jsonl").write_text("\n")
  config = make_config(tmp_path, dict(a=jsonl("a")), dict(t2i=1))
  with pytest.raises(
    pipeline.DataError, match=r"train\.a\.path='a.jsonl' holds no"
  ):
    make_loader(config, tokenizer)


def test_source_without_examples_for_its_task(two_tasks, tokenizer):
  root, _ = two_tasks
  train = dict(questions=jsonl("questions", tasks=("t2i",)))
  config = make_config(root, train, dict(t2i=2))
  with pytest.raises(ValueError, match="no example for task 't2i': remove"):
    make_loader(config, tokenizer)


def test_vae_batches_hold_images_of_all_sources(two_tasks):
  root, train = two_tasks
  train = dict(train)
  train["captions"] = dataclasses.replace(train["captions"], moments="later")
  config = make_config(root, train, dict(image=40), system="vae")
  batch = take(make_loader(config, None), 1)[0]
  assert list(batch) == ["image"] and list(batch["image"]) == ["image"]
  images = batch["image"]["image"]
  assert images.shape == (40, SIZE, SIZE, 3)
  known = {
    i: pixels(i) / np.float32(127.5) - 1 for i in [*range(30), *range(100, 117)]
  }
  seen = {
    next(i for i, k in known.items() if np.array_equal(k, image))
    for image in images
  }
  assert len([i for i in seen if i < 100]) == 20
  assert len([i for i in seen if i >= 100]) == 17


def moments_config(root, train, flip=False):
  config = make_config(root, train, dict(t2i=4, i2t=2), data=dict(flip=flip))
  vae = dataclasses.replace(config.model.vae, multipliers=(1, 2, 2), latent=4)
  model = dataclasses.replace(config.model, vae=vae)
  return dataclasses.replace(config, model=model)


def cached_shape(config):
  side = SIZE // config.model.vae.factor
  return side, side, 2 * config.model.vae.latent


def test_cached_moments_replace_pixels(tmp_path, tokenizer):
  write(tmp_path, "a", range(9))
  source = jsonl("a", moments="m")
  config = moments_config(tmp_path, dict(a=source))
  shape = cached_shape(config)
  arrays = [np.full(shape, i, np.float32) for i in range(9)]
  cached.write_cached(tmp_path / "m", arrays)
  batch = take(make_loader(config, tokenizer), 1)[0]
  assert set(batch["t2i"]) == {"prompt", "image"} and "seen" in batch["i2t"]
  ids = ids_of(batch["t2i"]["prompt"], tokenizer)
  image = batch["t2i"]["image"]
  np.testing.assert_array_equal(image[:, 0, 0, 0], ids)
  assert image.shape == (4, *shape) and image.dtype == np.float32


def test_moments_of_what_is_not_drawn_leave_pixels(tmp_path, tokenizer):
  write(tmp_path, "a", range(9))
  write(tmp_path, "b", range(9))
  train = dict(a=jsonl("a"), b=jsonl("b", tasks=("i2t",), moments="m"))
  config = moments_config(tmp_path, train)
  batch = take(make_loader(config, tokenizer), 1)[0]
  assert set(batch["t2i"]) == {"prompt", "image.pixels"}
  assert np.isfinite(batch["t2i"]["image.pixels"]).all()


def test_unsuitable_moments_are_refused(tmp_path, tokenizer):
  write(tmp_path, "a", range(3))
  write(tmp_path, "b", range(3))
  source = jsonl("a", moments="m")
  config = moments_config(tmp_path, dict(a=source))
  shape = cached_shape(config)
  cached.write_cached(tmp_path / "m", [np.zeros(shape)] * 3)
  flipping = moments_config(tmp_path, dict(a=source), flip=True)
  with pytest.raises(ValueError, match="cannot be flipped"):
    make_loader(flipping, tokenizer)
  mixed = moments_config(tmp_path, dict(a=source, b=jsonl("b")))
  with pytest.raises(ValueError, match=r"\['a'\] have .*\['b'\] have not"):
    make_loader(mixed, tokenizer)
  cached.write_cached(tmp_path / "m", [np.zeros((1, 1, shape[-1]))] * 3)
  with pytest.raises(ValueError, match="the model needs"):
    make_loader(config, tokenizer)


def test_flags_are_marked_as_parsed_for_workers(
  two_tasks, tokenizer, monkeypatch
):
  marked = []
  flags = types.SimpleNamespace(
    is_parsed=lambda: False, mark_as_parsed=lambda: marked.append(True)
  )
  monkeypatch.setattr(pipeline.flags, "FLAGS", flags)
  for workers in (0, 1):
    monkeypatch.setattr(
      pipeline.grain.IterDataset, "mp_prefetch", lambda self, *_: self
    )
    data = dict(workers=workers)
    config = make_config(*two_tasks, dict(t2i=2), data=data)
    pipeline._read_ahead(pipeline.grain.MapDataset.range(3), config)
    assert len(marked) == workers
