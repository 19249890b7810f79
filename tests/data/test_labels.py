"""Classes that texts tell."""

import numpy as np
import pytest

from unifluid_jax.data import fields
from unifluid_jax.data.labels import Label
from unifluid_jax.data.records import BadRecord

NAMES = ("cat", "dog", "catfish", "red dog")


def number(text, names=NAMES, **how):
  row = Label("prompt", names, **how).rows(
    fields.Example({"prompt": text}, {}), None
  )
  assert list(row) == [""] and row[""].dtype == np.int32
  return int(row[""])


def test_a_text_is_the_name_of_its_class():
  assert [number(text) for text in NAMES] == [0, 1, 2, 3]
  assert number(" dog ") == 1
  assert number("20", tuple(map(str, range(30)))) == 20


def test_the_first_class_that_a_text_mentions_counts():
  for text, want in (("two dogs left of a cat", 1), ("a catfish", 2),
                     ("the red dog and the cat", 3), ("A CAT", 0),
                     ("a bobcat, a dog", 1), ("bobcat, cat", 0)):  # fmt: skip
    assert number(text, by="mention") == want
  assert number("zwei\u732b", ("\u732b",), by="mention") == 0


def test_an_empty_text_is_the_null_class():
  assert number(None) == number("") == 4


def test_other_texts_are_refused_by_name():
  with pytest.raises(BadRecord, match="'a dog' is no class.*cat, dog, catfish"):
    number("a dog")
  with pytest.raises(BadRecord, match="'a bird' mentions no class"):
    number("a bird", by="mention")
