"""Dialogues whose rule must be read off two examples."""

import dataclasses
import hashlib
import itertools

import numpy as np
import pytest

from tests.systems.conftest import tiny
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data import corpus, text
from unifluid_jax.data.images import decode_image
from unifluid_jax.data.sources import source as sources
from unifluid_jax.data.worlds import in_context, shapes, shapes_builder, written

WORLD = shapes.World()
ALL = list(itertools.product(
  (in_context.TELL, in_context.DRAW), in_context.RULES, shapes.SPLITS
))  # fmt: skip


def episodes(kind, named, split, count=40):
  for i in range(count):
    rng = np.random.default_rng(i)
    yield in_context.sample_episode(WORLD, rng, kind, named, split)


def things(episode):
  return [in_context.thing_of(scene) for scene in episode.scenes]


@pytest.mark.parametrize("kind, named, split", ALL)
def test_two_examples_leave_one_answer(kind, named, split):
  """Each text names one attribute, which no other of its texts does."""
  k = in_context.RULES.index(named)
  seen = set()
  for episode in episodes(kind, named, split):
    found = things(episode)
    assert len(episode.scenes) == len(set(episode.words)) == 3
    assert all(s.identical or len(s.items) == 1 for s in episode.scenes)
    for j in range(3):
      values = {thing[j] for thing in found}
      # "tell": nothing else is shared; "draw": all else is.
      assert len(values) == (3 if kind == in_context.TELL or j == k else 1)
    words = [str(thing[k]) for thing in found]
    if named == "number":
      words = [("one", "two", "three", "four")[int(w) - 1] for w in words]
    assert list(episode.words) == words
    seen.add(found[-1])
  assert len(seen) > 10 or split == "held_out"


@pytest.mark.parametrize("kind, named", [x[:2] for x in ALL if "train" in x])
def test_only_what_is_asked_for_is_held_out(kind, named):
  held = set(WORLD.pairs("held_out"))
  for split in shapes.SPLITS:
    for episode in episodes(kind, named, split):
      *examples, asked = (thing[:2] in held for thing in things(episode))
      assert asked == (split == "held_out")
      same_pair = kind == in_context.DRAW and named == "number"
      assert all(e == (asked and same_pair) for e in examples)


def test_pairs_are_image_and_text_or_text_and_image():
  for kind in (in_context.TELL, in_context.DRAW):
    (episode,) = episodes(kind, "colour", "train", 1)
    for (given, found), scene, word in zip(
      episode.pairs(WORLD), episode.scenes, episode.words, strict=True
    ):
      assert (given.target, found.target) == (False, True)
      image, said = (given, found) if kind == "tell" else (found, given)
      assert said.text == word and said.image is None and not image.text
      np.testing.assert_array_equal(image.image, shapes.draw(WORLD, scene))


def test_worlds_without_three_such_scenes_are_refused():
  few = dataclasses.replace(
    WORLD, shapes=("circle", "square", "triangle"),
    held_out=(("red", "circle"), ("red", "square")),
    colours=("red", "green", "blue"),
  )  # fmt: skip
  with pytest.raises(ValueError, match="differ in their shape alone"):
    for i in range(20):
      rng = np.random.default_rng(i)
      in_context.sample_episode(few, rng, in_context.DRAW, "shape")


def data_config(root, dialogues):
  config = tiny()
  source = dataclasses.replace(config.data.train["shapes"], moments="")
  more = SourceConfig("array_record", "shapes_in_context", tasks=("dialogue",))
  world = {"train": 4, "validation": 2, "held_out": 2, "seed": 0}
  train = {"shapes": source}
  if dialogues:
    train["dialogues"], world["in_context"] = more, dialogues
  data = dataclasses.replace(
    config.data, root=str(root), world=world, train=train
  )
  words = dataclasses.replace(
    config.text, tokenizer=str(root / "t.model"), train_vocab=200
  )
  return dataclasses.replace(config, data=data, text=words)


def digests(root):
  return {
    str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest()
    for f in sorted(root.rglob("*"))
    if f.is_file()
  }


def test_prepare_writes_dialogues_beside_a_data_set_that_stays(tmp_path):
  """With and without: the same scenes, and a tokenizer that knows all words."""
  plain = data_config(tmp_path, 0)
  assert "; " not in written.write_world(plain)
  corpus.make_tokenizer(plain, 200)
  before = digests(tmp_path)
  config = data_config(tmp_path, 12)
  said = written.write_world(config)
  assert "kept the data set" in said and "wrote 12 dialogues in" in said
  assert corpus.make_tokenizer(config, 200).startswith("kept the tokenizer")
  after = digests(tmp_path)
  assert {k: after[k] for k in before} == before
  new = {k.split("/")[0] for k in set(after) - set(before)}
  assert new == {"shapes_in_context"}
  assert "kept 12 dialogues" in written.write_world(config)
  with pytest.raises(ValueError, match="another sizes"):
    written.write_world(data_config(tmp_path, 13))


def test_records_are_read_as_they_were_made(tmp_path):
  in_context.build(tmp_path / "d", WORLD, 12, seed=3)
  config = SourceConfig("array_record", "d", tasks=("dialogue",))
  source = sources.open_source(config, str(tmp_path), "")
  assert [len(source.indices(t)) for t in ("dialogue", "image", "t2i", "i2t",
                                           "edit", "text")] == [
    12, 12, 0, 0, 0, 0
  ]  # fmt: skip
  ids = set()
  for i in range(12):
    made, turns = in_context.record(WORLD, 3, i), source[i].dialogue
    ids.add(made["id"].rpartition("-")[0])
    tells = made["id"].startswith("tell")
    assert [t.image is not None for t in turns] == [tells, not tells] * 3
    assert [t.target for t in turns] == [False, True] * 3
    assert [t.text for t in turns] == [t["text"] for t in made["dialogue"]]
    images = [t.image for t in turns if t.image is not None]
    assert images == [t["image"] for t in made["dialogue"] if t["image"]]
    assert source[i].image == images[0]
    assert decode_image(images[-1], 10**6).shape == (32, 32, 3)
  assert len(ids) == 6
  other = in_context.record(WORLD, 4, 0)["dialogue"]
  assert other != in_context.record(WORLD, 3, 0)["dialogue"]


def test_their_words_are_those_of_the_scenes(tmp_path):
  """A tokenizer that learned the scenes' texts has a piece for each word."""
  records = [shapes_builder.record(WORLD, "train", 0, i) for i in range(400)]
  said = [t for r in records for t in (*r["prompts"], *r["captions"])]
  said += [q[k] for r in records for q in r["questions"]
           for k in ("question", "answer")]  # fmt: skip
  tokenizer = text.train(said, tmp_path / "t.model", 320)
  for kind, named, split in ALL:
    for episode in episodes(kind, named, split, 12):
      for word in episode.words:
        assert not tokenizer.unknown_words(word), word
        assert len(tokenizer.encode(word)) == 1, word
