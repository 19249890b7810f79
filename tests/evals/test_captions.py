"""CIDEr-D against golden values of the reference code, and its refusals."""

import math

import pytest

from unifluid_jax.evals.metrics import captions, ptb

REFERENCES = {
  0: ["a cat sits on a mat", "cat on the mat"],
  1: ["a dog runs", "the dog is running fast"],
  2: ["blue sky over sea"],
}
PREDICTIONS = {0: "a cat on a mat", 1: "a dog runs", 2: "red car"}


def split(texts):
  return [text.split() for text in texts]


@pytest.mark.parametrize("tokenize", [split, ptb.own, ptb.tokenize])
def test_golden_values(tokenize):
  score, images = captions.cider_d(REFERENCES, PREDICTIONS, tokenize)
  assert images[0] == pytest.approx(3.73658502, abs=1e-6)
  assert images[1] == pytest.approx(4.14779456, abs=1e-6)
  assert images[2] == 0
  assert score == pytest.approx(2.62812653, abs=1e-6)


def test_perfect_long_captions_score_ten():
  references = {i: [f"w{i} x{i} y{i} z{i} v{i}"] for i in range(3)}
  predictions = {i: refs[0] for i, refs in references.items()}
  score, _ = captions.cider_d(references, predictions)
  assert score == pytest.approx(10)


def test_empty_prediction_scores_zero():
  _, images = captions.cider_d(REFERENCES, {**PREDICTIONS, 0: ""})
  assert images[0] == 0
  _, images = captions.cider_d(REFERENCES, {**PREDICTIONS, 0: "?,"})
  assert images[0] == 0


def test_one_token_captions():
  references = {0: ["cat"], 1: ["dog runs"]}
  _, images = captions.cider_d(references, {0: "cat", 1: "dog"})
  assert images[0] == pytest.approx(10 / 4)
  # One of two equally rare unigrams; one bigram longer than the candidate.
  penalty = math.exp(-1 / 72)
  assert images[1] == pytest.approx(10 / 4 * penalty / math.sqrt(2))


def test_repetition_is_clipped_and_length_penalised():
  references = {0: ["red car"], 1: ["blue sky"]}
  _, once = captions.cider_d(references, {0: "red car", 1: "blue sky"})
  _, thrice = captions.cider_d(
    references, {0: "red car red car red car", 1: "blue sky"}
  )
  assert once[0] == pytest.approx(5)  # orders 1 and 2 of 4
  unigrams = (3 * 0 + 2) / (math.sqrt(18) * math.sqrt(2))
  bigrams = 1 / (math.sqrt(9 + 4) * 1)
  expected = 10 * (unigrams + bigrams) / 4 * math.exp(-16 / 72)
  assert thrice[0] == pytest.approx(expected)


def test_a_single_image_scores_zero():
  score, images = captions.cider_d({7: ["a dog"]}, {7: "a dog"})
  assert score == 0
  assert images == {7: 0}


def test_ids_match_by_their_text():
  by_text = {str(k): v for k, v in PREDICTIONS.items()}
  assert captions.cider_d(REFERENCES, by_text) == captions.cider_d(
    REFERENCES, PREDICTIONS
  )
  assert set(captions.cider_d(REFERENCES, by_text)[1]) == {0, 1, 2}


@pytest.mark.parametrize(
  ("predictions", "message"),
  [
    ({0: "a", 2: "b"}, "no prediction for ids 1"),
    ({**PREDICTIONS, "x9": "b"}, "unknown ids 'x9'"),
    ([(0, "a"), (1, "b"), (2, "c"), (1, "d")], "more than once: 1"),
    ([(0, "a"), (1, "b"), (2, "c"), ("2", "d")], "more than once: '2'"),
  ],
)
def test_bad_prediction_ids_are_refused_by_name(predictions, message):
  with pytest.raises(ValueError, match=message):
    captions.cider_d(REFERENCES, predictions)
  with pytest.raises(ValueError, match=message):
    captions.exact_match(REFERENCES, predictions)


def test_bad_references_are_refused():
  with pytest.raises(ValueError, match="no references"):
    captions.cider_d({}, {})
  with pytest.raises(ValueError, match="no reference for ids 4"):
    captions.cider_d({4: []}, {4: "a"})


def test_exact_match_ignores_case_and_space_only():
  references = {0: ["a  Dog"], 1: ["x", "a cat"], 2: ["b."], 3: ["c"]}
  predictions = {0: "A dog ", 1: "a cat", 2: "b", 3: "d"}
  assert captions.exact_match(references, predictions) == 0.5
