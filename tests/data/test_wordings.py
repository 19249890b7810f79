"""What is asked in other words means the same, and training never peeks."""

import collections
import re
import string

import numpy as np
import pytest

from configs import shapes as config
from tests import text_rows
from unifluid_jax.data import text
from unifluid_jax.data.worlds import (
  shapes,
  shapes_builder,
  shapes_text,
  wordings,
)

FORMS = {**wordings.QUESTIONS, **wordings.INSTRUCTIONS}
SLOTS = {
  "shape": "triangle", "shapes": "triangles", "a": "triangle", "b": "square",
  "thing": "an orange triangle", "noun": "orange triangle", "n": "three",
  "colour": "yellow", "where": "right of",
}  # fmt: skip


def folded(words):
  """Without capitals, American spelling and the mark at the end."""
  return words.lower().replace("color", "colour").rstrip("?.")


def names(template):
  return {name for _, name, _, _ in string.Formatter().parse(template) if name}


@pytest.mark.parametrize("key", FORMS)
def test_every_form_has_ten_paraphrases_of_the_same_slots(key):
  form = FORMS[key]
  assert (len(form.trained), len(form.unseen)) == (7, 3)
  templates = [form.plain, *form.trained, *form.unseen]
  assert len(set(templates)) == 11
  for template in templates:
    assert names(template) == names(form.plain), template
    assert not re.search(r"[^a-z {}/]|  |color\b", template), template


@pytest.mark.parametrize("key", FORMS)
def test_training_asks_in_eight_wordings_and_in_no_other(key):
  form, rng = FORMS[key], np.random.default_rng(0)
  slots = {name: SLOTS[name] for name in names(form.plain)}
  relations = wordings._SYNONYMS["right of"]
  expected = {}
  for template in (form.plain, *form.trained):
    for where in relations:
      for n in ("three", "3"):
        expected[template.format(**slots | {"where": where, "n": n})] = template
  seen = collections.Counter()
  for _ in range(1000):
    seen[expected[folded(wordings.reworded(key, slots, rng))]] += 1
  assert set(seen) == {form.plain, *form.trained}
  assert seen[form.plain] / 1000 == pytest.approx(0.5, abs=0.05)


def test_ten_paraphrases_are_told_apart():
  slots = {"shape": "circle"}
  said = wordings.paraphrases("colour", slots, np.random.default_rng(0))
  form = FORMS["colour"]
  assert [folded(p.text) for p in said] == [
    t.format(**slots) for t in (*form.trained, *form.unseen)
  ]
  assert [p.unseen for p in said] == [False] * 7 + [True] * 3


def test_questions_are_typed_in_all_ways():
  rng = np.random.default_rng(0)
  said = [
    wordings.reworded("colour", {"shape": "star"}, rng) for _ in range(400)
  ]
  share = {
    "mark": np.mean([s.endswith("?") for s in said]),
    "american": np.mean(["color " in s.lower() + " " for s in said]),
    "capital": np.mean([s[0].isupper() for s in said]),
    "shouted": np.mean([s.isupper() for s in said]),
  }
  assert share["mark"] == pytest.approx(0.5, abs=0.1)
  assert share["american"] == pytest.approx(0.5, abs=0.1)
  assert share["capital"] == pytest.approx(0.5, abs=0.1)
  assert share["shouted"] == pytest.approx(0.1, abs=0.05)
  # Which never depends on what is asked: a question alone tells nothing.
  assert {s[-1] for s in said} <= set("?rRENen" + string.ascii_letters)


PLAIN = {
  "to the left of": "left of", "on the left of": "left of",
  "to the right of": "right of", "on the right of": "right of",
  "over": "above", "on top of": "above", "under": "below",
  "beneath": "below", "with": "and", "2": "two", "3": "three", "4": "four",
}  # fmt: skip


def meaning(prompt, leads):
  """The plain prompt without articles."""
  words = folded(prompt)
  for lead in sorted(leads, key=len, reverse=True):
    if words.startswith(lead + " "):
      words = words.removeprefix(lead + " ")
      break
  for other, plain in PLAIN.items():
    words = re.sub(rf"\b{other}\b", plain, words)
  return re.sub(r"\ban? ", "", words)


def test_prompts_keep_their_meaning():
  rng = np.random.default_rng(0)
  same = 0
  for i in range(600):
    scene = shapes.sample_scene(shapes.World(), np.random.default_rng([7, i]))
    plain = shapes_text.prompt(scene, rng)
    said = wordings.prompt(plain, rng)
    wanted = re.sub(r"\ban? ", "", plain)
    assert meaning(said, wordings._LEADS) == wanted
    same += folded(said) == plain
    unseen = wordings.prompt(plain, rng, unseen=True)
    assert meaning(unseen, wordings._UNSEEN_LEADS) == wanted
    assert folded(unseen).startswith(wordings._UNSEEN_LEADS)
    assert not folded(said).startswith(wordings._UNSEEN_LEADS)
  assert 0.5 < same / 600 < 0.75


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  """As `prepare` trains it, on 800 of the 16,000 scenes."""
  world, sentences = shapes.World(), ["caption en"]
  for i in range(800):
    rng = np.random.default_rng(i)
    scene = shapes.sample_scene(world, rng)
    r = shapes_builder.texts(world, scene, "train", rng)
    sentences += [*r["prompts"], *r["captions"], r["edit"]["instruction"]]
    for q in r["questions"]:
      sentences += [q["question"], q["answer"]]
  path = tmp_path_factory.mktemp("words") / "tokenizer.model"
  return text.train(sentences, path, config.get_config().text.train_vocab)


def longest(template):
  return template.format(**SLOTS | {"where": "to the right of"})


def test_words_that_nobody_trains_are_known_from_elsewhere(tokenizer):
  # A closed world: a new wording must be made of words that are taught.
  for key, form in FORMS.items():
    for template in (form.plain, *form.trained, *form.unseen):
      asked = longest(template) + "?"
      assert not tokenizer.unknown_words(asked), (key, asked)
  for lead in (*wordings._LEADS, *wordings._UNSEEN_LEADS):
    assert not tokenizer.unknown_words(lead)
  assert tokenizer.unknown_words("a red hexagon") == ["hexagon"]


def test_words_are_single_pieces_and_everything_fits_its_slots(tokenizer):
  slots = config.get_config().text
  for form in FORMS.values():
    for template in (form.plain, *form.trained, *form.unseen):
      for word in longest(template).split():
        assert len(tokenizer.encode(word)) == 1, word
  for form in wordings.QUESTIONS.values():
    for template in (form.plain, *form.trained, *form.unseen):
      text_rows.prefix(tokenizer, longest(template) + "?", slots.prefix)
  for form in wordings.INSTRUCTIONS.values():
    for template in (form.plain, *form.trained, *form.unseen):
      text_rows.prompt(tokenizer, longest(template) + ".", slots.prompt)
  most = "an orange triangle to the right of an orange triangle"
  for lead in (*wordings._LEADS, *wordings._UNSEEN_LEADS):
    text_rows.prompt(tokenizer, f"{lead} {most}", slots.prompt)
  text_rows.suffix(
    tokenizer, "a yellow triangle right of a pink circle", slots.suffix
  )
  assert tokenizer.truncated == 0
