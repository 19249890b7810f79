"""Accuracy of short answers, counted by hand."""

import pytest

from unifluid_jax.evals.metrics import vqa


def test_exact_accuracy_overall_and_by_kind():
  result = vqa.exact_accuracy(
    ["2", "red", "Yes", "no"],
    ["2", "blue", "yes", "no"],
    ["count", "colour", "yesno", "yesno"],
  )
  assert result.overall == 0.5
  assert result.by_kind == {"colour": 0, "count": 1, "yesno": 0.5}
  assert result.scores == (1, 0, 0, 1)


def test_lower_casing_is_an_option():
  assert vqa.exact_accuracy(["Yes"], ["yes"]).overall == 0
  assert vqa.exact_accuracy(["Yes"], ["yes"], lower=True).overall == 1


def test_bad_input_is_refused():
  with pytest.raises(ValueError, match="no predictions"):
    vqa.exact_accuracy([], [])
  with pytest.raises(ValueError, match="'answers': 2"):
    vqa.exact_accuracy(["a"], ["a", "b"])
  with pytest.raises(ValueError, match="'kinds': 0"):
    vqa.exact_accuracy(["a"], ["a"], [])
