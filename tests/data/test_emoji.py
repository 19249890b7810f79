"""The emoji world: what is held out, what is said, what edits lead to."""

import json

import numpy as np
import pytest

from unifluid_jax.data.worlds import emoji
from unifluid_jax.data.worlds.emoji import Picture

RNG = np.random.default_rng
APPLE = Picture("red apple", "noto", "food & drink")
HAND = Picture("waving hand", "noto", "people & body")
PICTURES = [
  Picture(f"thing {i}", style, "objects")
  for i in range(400)
  for style in emoji.STYLES[:4]
]


def test_a_picture_travels_as_json():
  dark = HAND._replace(tone="dark")
  for picture in (APPLE, dark):
    assert emoji.picture_from_json(emoji.picture_to_json(picture)) == picture
  assert json.loads(emoji.picture_to_json(APPLE)) == {
    "concept": "red apple", "style": "noto", "group": "food & drink",
    "tone": None,
  }  # fmt: skip
  for text in ("", "[]", "{}", '{"shape": "circle"}'):
    with pytest.raises(ValueError, match="no picture of the emoji world"):
      emoji.picture_from_json(text)


def test_what_is_held_out_is_one_style_of_a_quarter_of_the_concepts():
  splits = emoji.split(PICTURES, 50)
  pairs = [p[:2] for p in splits.held_out]
  assert len({concept for concept, _ in pairs}) == len(pairs)
  assert 0.2 < len(pairs) / 400 < 0.3
  styles = [style for _, style in pairs]
  counts = [styles.count(style) for style in emoji.STYLES[:4]]
  assert min(counts) > len(pairs) / 8  # no style is spared
  assert not set(pairs) & {p[:2] for p in splits.train}
  assert sorted(splits.train + splits.held_out) == sorted(PICTURES)
  assert set(splits.validation) <= set(splits.train)
  assert len(set(splits.validation)) == 50


def test_splits_depend_neither_on_order_nor_on_other_pictures():
  splits = emoji.split(PICTURES, 50)
  shuffled = [PICTURES[i] for i in RNG(0).permutation(len(PICTURES))]
  assert emoji.split(shuffled, 50) == splits
  half = [p for p in PICTURES if int(p.concept.split()[1]) % 2]
  assert set(emoji.split(half, 50).held_out) == {
    p for p in splits.held_out if int(p.concept.split()[1]) % 2
  }
  # Without one of four sets the others' pairs stay held out.
  fewer = emoji.split([p for p in PICTURES if p.style != "noto"], 50)
  kept = {p for p in splits.held_out if p.style != "noto"}
  assert kept <= set(fewer.held_out) and len(kept) > 20


def test_skin_tones_are_held_out_with_their_concept_and_style():
  toned = [
    HAND._replace(concept=f"hand {i}", style=style, tone=tone)
    for i in range(60)
    for style in ("noto", "fluent")
    for tone in (None, *emoji.TONES)
  ]
  splits = emoji.split(toned, 10)
  assert splits.held_out and len(splits.held_out) % 6 == 0
  assert not {p[:2] for p in splits.held_out} & {p[:2] for p in splits.train}
  # A concept that one set alone draws is always trained on.
  alone = [p for p in toned if p.style == "noto"]
  assert not emoji.split(alone, 10).held_out


def test_the_hash_is_the_same_everywhere():
  """SHA-256 of JSON, its first 48 bits; worked out apart from the code."""
  import hashlib

  data = b'["held out", "red apple"]'
  want = int(hashlib.sha256(data).hexdigest()[:12], 16) / 16**12
  assert emoji.chance("held out", "red apple") == want


def test_captions_and_prompts():
  assert emoji.caption(APPLE) == "red apple, noto style"
  dark = HAND._replace(tone="dark")
  assert emoji.caption(dark) == "waving hand, dark skin tone, noto style"
  assert emoji.prompts(APPLE, "validation") == [emoji.caption(APPLE)]
  train = emoji.prompts(APPLE, "train", "pink")
  assert train[0] == "red apple, noto style on pink" and len(set(train)) == 4
  assert all("red apple" in t and "noto" in t for t in train)


def test_questions_have_their_answers():
  others = [APPLE, HAND, APPLE._replace(concept="pear")]
  asked = emoji.questions(APPLE, others, "validation", RNG(0))
  told = {q.kind: (q.question, q.answer) for q in asked}
  assert told["name"] == ("what is this", "red apple")
  assert told["style"] == ("which style is it", "noto")
  assert told["group"] == ("which group is it", "food & drink")
  assert "tone" not in told and len(asked) == 4
  dark = HAND._replace(tone="dark")
  asked = emoji.questions(dark, others, "validation", RNG(0))
  assert [q.kind for q in asked] == list(emoji.KINDS)
  assert asked[3][:2] == ("which skin tone", "dark")


def test_yes_and_no_are_right_and_equally_frequent():
  others = [APPLE, HAND, APPLE._replace(concept="pear")]
  said = []
  for seed in range(200):
    (asked,) = [
      q
      for q in emoji.questions(APPLE, others, "held_out", RNG(seed))
      if q.kind == "yes/no"
    ]
    # A wrong concept is of the picture's own group: never a hand.
    name = {"yes": "red apple", "no": "pear"}[asked.answer]
    assert asked.question == f"is it {name}"
    said.append(asked.answer)
  assert 70 < said.count("yes") < 130
  train = emoji.questions(APPLE, others, "train", RNG(0))
  assert [q.answer for q in train if q.kind == "yes/no"] == ["yes", "no"]
  (described,) = [q.answer for q in train if q.kind == "description"]
  assert described in emoji.prompts(APPLE, "train")[1:]
  with pytest.raises(ValueError, match="the only concept"):
    emoji.questions(APPLE, [APPLE], "train", RNG(0))


def test_edits_change_one_thing():
  others = [
    APPLE, HAND, APPLE._replace(style="fluent"), HAND._replace(tone="dark"),
    HAND._replace(tone="dark", style="fluent"), HAND._replace(tone="light"),
  ]  # fmt: skip
  assert emoji.edits(APPLE, others) == [others[2]]
  assert emoji.edits(HAND, others) == [others[3], others[5]]
  # To another tone or style, never to none.
  assert emoji.edits(others[3], others) == [others[4], others[5]]

  def said(source, target):
    return emoji.edit(source, target, "validation", RNG(0)).instruction

  assert said(APPLE, others[2]) == "redraw in fluent style"
  assert said(HAND, others[3]) == "make the skin tone dark"
  worded = {
    emoji.edit(HAND, others[3], "train", RNG(i)).instruction for i in range(30)
  }
  assert len(worded) == 3 and all("dark" in w for w in worded)
