"""Answer metrics against golden values of the reference code, and refusals."""

import itertools

import pytest

from unifluid_jax.evals.metrics import (
  answers,
  captions,
  pairing,
  vqa_text,
)


def one(metric, target, prediction, **kw):
  given = [target] if isinstance(target, str) else target
  return metric({"q": given}, {"q": prediction}, **kw).value


# Exact match


def test_exact_counts_case_and_reports_kinds():
  references = {1: ["True"], 2: ["False"], 3: ["True"]}
  predictions = {"1": "True", "2": "false", "3": "False"}
  found = answers.exact(references, predictions, {1: "a", 2: "b", 3: "a"})
  assert found.value == pytest.approx(1 / 3)
  assert found.parts == {"a": 0.5, "b": 0}
  assert found.scores == {1: 1, 2: 0, 3: 0}


# VQA


@pytest.mark.parametrize(("matches", "share"), [(0, 0), (1, 1 / 3), (4, 1)])
def test_vqa_simple(matches, share):
  given = ["cat"] * matches + ["dog"] * (10 - matches)
  assert one(answers.vqa_simple, given, "cat") == share
  assert one(answers.vqa_simple, given, "Cat") == 0
  assert one(answers.vqa_simple, given, "Cat", lower=True) == share
  found = answers.vqa_simple({0: given}, {0: "cat"})
  assert found.parts == {"any": float(matches > 0)}


@pytest.mark.parametrize("matches", range(11))
def test_vqa_v2_averages_over_leaving_one_out(matches):
  given = ["cat"] * matches + ["dog"] * (10 - matches)
  subsets = itertools.combinations(given, 9)
  expected = [min(1, subset.count("cat") / 3) for subset in subsets]
  assert one(answers.vqa_v2, given, "cat") == pytest.approx(
    sum(expected) / len(expected)
  )
  if matches == 3:
    assert one(answers.vqa_v2, given, "cat") == pytest.approx(0.9)


def test_vqa_v2_normalises_only_where_annotators_differ():
  same = ["The cat"] * 10
  assert one(answers.vqa_v2, same, "cat") == 0
  assert one(answers.vqa_v2, same, " The\tcat\n") == 1
  differ = ["The cat"] * 9 + ["dog"]
  assert one(answers.vqa_v2, differ, "a CAT!") == 1


def test_vqa_v2_needs_ten_answers():
  with pytest.raises(ValueError, match="'q' do not have 10 answers"):
    one(answers.vqa_v2, ["cat"] * 9, "cat")


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("The dog's red-ball.", "dog's red ball"),
    ("1,000 cats, dogs", "1000 cats dogs"),
    ("don't/won't", "don't won't"),
    ("Its 3.5 ft.", "its 3.5 ft"),
    ("a.m. .5", "am .5"),
    ("1,000 red-hot", "1000 redhot"),
    ("red- hot", "red hot"),
    ("Dont an two eleven", "don't 2 eleven"),
    ("hadnt've hadn'tve yall'd've 'ow'sat", "hadn't've hadn't've y'all'd've "
     "'ow's'at"),
    ("somebody'd Im shed wed", "somebodyd im shed wed"),
    ("none zero ten", "0 0 10"),
    ("\"x\" [y] {z} 10:30", "x y z 10:30"),
  ],
)  # fmt: skip
def test_normalisation(text, expected):
  assert vqa_text.normalise(text) == expected


# Numbers, distances, letters, types


@pytest.mark.parametrize(
  ("target", "prediction", "score"),
  [
    ("10%", "0.1", 1), ("100", "105", 1), ("100", "105.1", 0), ("0", "0", 1),
    ("0", "0.0", 0), ("1,000", "1000", 0), ("5", "5%", 0), ("Yes", "yes", 1),
    ("-20", "-21", 1), ("-20", "21", 0), ("5", "five", 0), ("red", "5", 0),
  ],
)  # fmt: skip
def test_relaxed(target, prediction, score):
  assert one(answers.relaxed, target, prediction) == score


@pytest.mark.parametrize(
  ("target", "prediction", "score"),
  [
    ("hello", "help", 0.6), ("abcd", "abxx", 0), ("", "", 1), ("", "a", 0),
    ("a", "", 0), ("Hello", "hELLO", 1), ("kitten", "sitting", 4 / 7),
    (["x", "hello"], "hello", 1), (["ab", "abc"], "abd", 2 / 3),
    ("ab", "ba", 0), ("abcdef", "bcdefa", 2 / 3),
  ],
)  # fmt: skip
def test_anls(target, prediction, score):
  assert one(answers.anls, target, prediction) == pytest.approx(score)


@pytest.mark.parametrize(
  ("target", "prediction", "score"),
  [
    ("2", "Two", 1), ("twenty", "20", 1), ("0", "none", 1), ("0", "zero", 1),
    ("13", "thirteen", 1), ("2", "two cats", 0), ("2", "2 ", 0),
    ("31", "31", 1),
  ],
)  # fmt: skip
def test_counts(target, prediction, score):
  assert one(answers.counts, target, prediction) == score


def test_letters():
  references = {i: ["The answer is B."] for i in range(5)}
  predictions = {0: "the answer is b. Because", 1: "The answer is A.", 2: "B",
                 3: "So the answer is B.", 4: "The answer is B"}  # fmt: skip
  found = answers.letters(references, predictions)
  assert found.scores == {0: 1, 1: 0, 2: 0, 3: 0, 4: 0}
  assert found.parts == {"parsefail": 0.6}
  # As big_vision's evaluator: what states no letter equals only its like.
  assert one(answers.letters, "B", "The answer is B.") == 0.0
  assert one(answers.letters, "B", "C") == 1.0


def test_by_type_weighs_types_alike():
  references = {i: ["yes"] for i in range(4)}
  predictions = {0: "Yes", 1: "yes", 2: "YES", 3: "no"}
  kinds = {0: "comp", 1: "comp", 2: "comp", 3: "presence"}
  found = answers.by_type(references, predictions, kinds)
  assert found.value == 0.5
  assert found.parts == {"comp": 1, "presence": 0, "overall": 0.75}
  with pytest.raises(ValueError, match="question's type"):
    answers.by_type(references, predictions)


def test_cider_d_agrees_with_captions():
  references = {0: ["a cat sits on a mat", "cat on the mat"], 1: ["a dog"]}
  predictions = {0: "a cat on a mat", 1: "a dog"}
  found = answers.cider_d(references, predictions, {0: "x", 1: "y"})
  value, scores = captions.cider_d(references, predictions)
  assert (found.value, found.scores) == (value, scores)
  assert found.parts == {"x": scores[0], "y": scores[1]}


# Ids


GIVEN = {
  name: ["The answer is A."] * (10 if "vqa" in name else 1)
  for name in answers.METRICS
}


@pytest.mark.parametrize("name", answers.METRICS)
def test_ids_must_agree(name):
  metric = answers.METRICS[name]
  given = {i: GIVEN[name] for i in range(3)}
  kinds = {i: "k" for i in range(3)}
  text = "The answer is A."
  full = {i: text for i in range(3)}
  if name != "cider_d":
    assert metric(given, full, kinds).value == 1
  with pytest.raises(ValueError, match="no prediction for ids 1"):
    metric(given, {0: text, 2: text}, kinds)
  with pytest.raises(ValueError, match="unknown ids 'x'"):
    metric(given, {**full, "x": text}, kinds)
  with pytest.raises(ValueError, match="predictions hold ids .* '2'"):
    metric(given, [*full.items(), ("2", text)], kinds)
  with pytest.raises(ValueError, match="references hold ids .* '2'"):
    metric([*given.items(), ("2", GIVEN[name])], full, kinds)
  with pytest.raises(ValueError, match="no kind for ids '1', '2'"):
    metric(given, full, {0: "k"})
  with pytest.raises(ValueError, match="kinds of unknown ids '9'"):
    metric(given, full, {**kinds, 9: "k"})


@pytest.mark.parametrize(
  "name", ["exact", "relaxed", "counts", "letters", "by_type"]
)
def test_single_answer_metrics_refuse_several(name):
  given = {7: ["The answer is A."] * 2}
  with pytest.raises(ValueError, match="7 have several answers"):
    answers.METRICS[name](given, {7: "x"}, {7: "k"})


def test_unusable_references_are_refused():
  with pytest.raises(ValueError, match="no references"):
    answers.exact({}, {})
  with pytest.raises(ValueError, match="no reference for ids 4"):
    answers.anls({4: []}, {4: "a"})
  with pytest.raises(ValueError, match="ids 4 are one string"):
    answers.anls({4: "a"}, {4: "a"})


def test_errors_name_ten_ids_at_most():
  assert pairing.few(list(range(12))).endswith("9 and 2 more")
  assert pairing.few(["a"]) == "'a'"


@pytest.mark.parametrize("name", answers.METRICS)
def test_pairs_may_come_from_an_iterator(name):
  text = "The answer is A."
  given = [(i, GIVEN[name]) for i in range(2)]
  said = [(i, text) for i in range(2)]
  kinds = {0: "k", 1: "k"}
  metric = answers.METRICS[name]
  assert metric(iter(given), iter(said), kinds) == metric(given, said, kinds)
