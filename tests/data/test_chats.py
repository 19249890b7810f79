"""Conversations about scenes, and the data set that `prepare` writes."""

import dataclasses
import itertools

import numpy as np
import pytest

from tests.data.test_in_context import data_config, digests
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data import conversation, corpus, text
from unifluid_jax.data.images import decode_image
from unifluid_jax.data.sources import source as sources
from unifluid_jax.data.worlds import (
  chats,
  shapes,
  shapes_builder,
  shapes_text,
  written,
)

WORLD = shapes.World()


def sampled(split="train", count=8):
  for i in range(count * len(chats.SEQUENCES)):
    kinds = chats.SEQUENCES[i % len(chats.SEQUENCES)]
    rng = np.random.default_rng([7, i])
    yield kinds, chats.sample(WORLD, rng, kinds, split)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_exchanges_are_true_of_the_scene_they_speak_of(split):
  seen = set()
  for kinds, exchanges in sampled(split):
    assert [e.kind for e in exchanges] == list(kinds)
    before = None
    for e in exchanges:
      seen.add(e.kind)
      # A scene is shown once, where none was drawn.
      assert (e.shown is None) == (before is not None or e.kind == "draw")
      before = before or e.shown
      if e.kind in ("describe", "ask"):
        assert e.scene == before and not e.draws
      if e.kind == "describe":
        assert e.said == shapes_text.caption(e.scene)
      if e.kind == "edit":
        assert e.scene != before and e.draws
        assert abs(len(e.scene.items) - len(before.items)) <= 1
      if e.kind == "draw":
        assert e.draws and e.asked.count(e.scene.items[0].shape)
      before = e.scene
  assert seen == set(chats.KINDS)


def test_every_kind_follows_a_drawing():
  """So that what came before tells nothing of whether an image is due."""
  pairs = {p for kinds in chats.SEQUENCES for p in itertools.pairwise(kinds)}
  drawn = {after for before, after in pairs if before in chats.DRAWN}
  assert drawn == set(chats.KINDS) - {chats.DRAW}
  assert (chats.DESCRIBE, chats.DRAW) in pairs


def test_questions_are_those_of_the_scene():
  """Each question's answer is found by asking the scene again."""
  found = []
  for _, exchanges in sampled("validation", 4):
    for e in (e for e in exchanges if e.kind == "ask"):
      options = {}
      for seed in range(12):
        rng = np.random.default_rng(seed)
        for q in shapes_text.questions(WORLD, e.scene, rng, "validation"):
          options[q.question] = q.answer
      found.append(options.get(e.asked) == e.said)
      assert options.get(e.asked, e.said) == e.said
  assert np.mean(found) > 0.8


def test_what_is_trained_holds_no_held_out_wording_and_no_held_out_pair():
  wordings = chats.WORDINGS
  assert [len(x) for x in wordings] == [29, 7, 3]
  held = set(WORLD.pairs("held_out"))
  used = set()
  for _, exchanges in sampled():
    for e in exchanges:
      assert not {i.pair for i in e.scene.items} & held
      if e.kind == "draw":
        forms = [w for w in (*wordings.prompts, *wordings.held_out)
                 if fits(w, e.asked)]  # fmt: skip
        # A longer lead is another wording: "draw {caption}" fits all.
        used.add(max(forms, key=len))
  assert used <= set(wordings.prompts) and len(used) > 12
  rng = np.random.default_rng(0)
  unseen = {chats.request("x", rng, unseen=True) for _ in range(99)}
  assert unseen == {w.replace("{caption}", "x") for w in wordings.held_out}


def fits(wording, asked):
  lead = wording.removesuffix("{caption}")
  return asked.startswith(lead)


def test_placeholders_stand_for_scenes_in_their_order():
  for _, exchanges in sampled():
    messages, scenes = chats.messages(exchanges)
    turns = conversation.turns_of(messages, scenes)
    want = [s for e in exchanges for s in (e.shown, e.draws and e.scene) if s]
    assert [t.image for t in turns if t.image is not None] == want
    assert len(scenes) <= 2
    for t in turns:
      assert t.target == (t.role == "assistant")


def test_their_words_are_those_of_the_scenes(tmp_path):
  records = [shapes_builder.record(WORLD, "train", 0, i) for i in range(200)]
  said = [t for r in records for t in (*r["prompts"], *r["captions"])]
  said += [q[k] for r in records for q in r["questions"]
           for k in ("question", "answer")]  # fmt: skip
  said += [r["edit"]["instruction"] for r in records]
  tokenizer = text.train(said, tmp_path / "t.model", 320)
  words = set()
  for split in ("train", "validation"):
    for _, exchanges in sampled(split):
      words |= {w for e in exchanges for w in (e.asked, e.said)}
  every = itertools.chain(*chats.WORDINGS)
  words |= {w.replace("{caption}", "red") for w in every}
  for sentence in words:
    assert not tokenizer.unknown_words(sentence), sentence


def chat_config(root, count):
  config = data_config(root, 0)
  train, world = dict(config.data.train), dict(config.data.world)
  if count:
    world["dialogues"] = count
    train["asked"] = SourceConfig(
      "sharegpt", "shapes_dialogues/train.json", tasks=("dialogue",)
    )
  data = dataclasses.replace(config.data, world=world, train=train)
  return dataclasses.replace(config, data=data)


def test_prepare_writes_them_beside_a_data_set_that_stays(tmp_path):
  plain = chat_config(tmp_path, 0)
  written.write_world(plain)
  corpus.make_tokenizer(plain, 200)
  before = digests(tmp_path)
  config = chat_config(tmp_path, 18)
  said = written.write_world(config)
  assert "kept the data set" in said and "wrote 18 dialogues in" in said
  assert corpus.make_tokenizer(config, 200).startswith("kept the tokenizer")
  after = digests(tmp_path)
  assert {k: after[k] for k in before} == before
  assert "kept 18 dialogues" in written.write_world(config)
  with pytest.raises(ValueError, match="another sizes"):
    written.write_world(chat_config(tmp_path, 19))
  source = sources.open_source(config.data.train["asked"], str(tmp_path), "")
  assert len(source) == 18 and not source.bad
  for i in range(18):
    messages, scenes = chats.record(WORLD, 0, i)
    found = source[i].dialogue
    assert found == conversation.turns_of(
      messages, [t.image for t in found if t.image is not None]
    )
    pixels = [decode_image(t.image) for t in found if t.image is not None]
    for image, scene in zip(pixels, scenes, strict=True):
      np.testing.assert_array_equal(image, shapes.draw(WORLD, scene))
