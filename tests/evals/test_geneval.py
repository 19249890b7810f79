"""GenEval's rules on boxes placed by hand."""

import pytest

from unifluid_jax.data.worlds import shapes_text
from unifluid_jax.evals.metrics import geneval
from unifluid_jax.evals.metrics.geneval import Detection, Result, judge


def found(name, x=0.0, y=0.0, score=0.95, colour=None, side=2.0):
  half = side / 2
  box = (x - half, y - half, x + half, y + half)
  return Detection(name, score, box, colour)


def task(tag, *include, exclude=None):
  extra = {} if exclude is None else {"exclude": exclude}
  return {"tag": tag, "include": list(include), "prompt": "", **extra}


CIRCLE = {"class": "circle", "count": 1}


def test_single_object_needs_more_than_the_threshold():
  single = task("single_object", CIRCLE)
  assert judge(single, [found("circle", score=0.31)]) == (True, "")
  assert not judge(single, [found("circle", score=0.3)])[0]
  assert not judge(single, [found("square")])[0]
  correct, reason = judge(single, [])
  assert not correct and "circle >= 1, found 0" in reason


def test_extra_objects_are_no_mistake_unless_excluded():
  more = [found("circle", x=9.0 * i) for i in range(3)] + [found("star")]
  assert judge(task("single_object", CIRCLE), more)[0]
  two = {"class": "circle", "count": 2}
  assert judge(task("counting", two), more)[0]
  three = [{"class": "circle", "count": 3}]
  correct, reason = judge(task("counting", two, exclude=three), more)
  assert not correct and "circle < 3, found 3" in reason
  assert judge(task("counting", two, exclude=three), more[1:])[0]


def test_counting_uses_the_high_threshold():
  two = task(
    "counting",
    {"class": "circle", "count": 2},
    exclude=[{"class": "circle", "count": 3}],
  )
  sure = [found("circle", score=0.91), found("circle", score=0.91)]
  assert judge(two, [*sure, found("circle", score=0.9)])[0]
  assert not judge(two, [sure[0], found("circle", score=0.9)])[0]
  assert not judge(two, [*sure, found("circle", score=0.901)])[0]


def test_at_most_sixteen_of_a_class_count():
  many = [found("circle", x=9.0 * i) for i in range(20)]
  ask = {"class": "circle", "count": 16}
  assert judge(task("counting", ask), many)[0]
  assert not judge(task("counting", ask | {"count": 17}), many)[0]
  squares = [found("square", x=9.0 * i) for i in range(16)]
  both = [ask, ask | {"class": "square"}]
  assert judge(task("counting", *both), [*many, *squares])[0]


def test_colour_looks_at_the_best_detections_only():
  red = task("colors", CIRCLE | {"color": "red"})
  good = found("circle", score=0.8, colour="red")
  bad = found("circle", score=0.7, colour="blue")
  assert judge(red, [bad, good])[0]
  better = found("circle", score=0.9, colour="blue")
  correct, reason = judge(red, [good, better])
  assert not correct and "found blue" in reason
  assert not judge(red, [found("circle", colour=None)])[0]


def test_one_wrong_crop_fails_the_colour():
  two = task("colors", {"class": "circle", "count": 2, "color": "red"})
  reds = [found("circle", colour="red"), found("circle", colour="red")]
  assert judge(two, reds)[0]
  assert not judge(two, [reds[0], found("circle", colour="pink")])[0]


def test_attributes_must_sit_on_their_objects():
  both = task(
    "color_attr",
    CIRCLE | {"color": "red"},
    {"class": "square", "count": 1, "color": "blue"},
  )
  right = [found("circle", colour="red"), found("square", colour="blue")]
  swapped = [found("circle", colour="blue"), found("square", colour="red")]
  assert judge(both, right)[0]
  correct, reason = judge(both, swapped)
  assert not correct and len(reason.splitlines()) == 2


@pytest.mark.parametrize(
  ("x", "y", "expected"),
  [
    (-10.0, 0.0, {"left of"}),
    (10.0, 0.0, {"right of"}),
    (0.0, -10.0, {"above"}),
    (0.0, 10.0, {"below"}),
    (10.0, 10.0, {"right of", "below"}),
    (10.0, 2.0, {"right of"}),
    (0.0, 0.0, set()),
    # Boxes of side 2: the offset shrinks by 0.4, 0.4 or less is none.
    (0.4, 0.4, set()),
    (0.81, 0.0, {"right of"}),
    # (0.79 - 0.4) / 0.79 is less than a half.
    (0.79, 0.0, set()),
  ],
)
def test_relations_of_centres(x, y, expected):
  a, b = found("circle", x, y).box, found("square").box
  assert geneval.relations(a, b) == expected


def test_half_the_distance_is_no_relation():
  # Sides of 1.25 each: |offset| 0.5, shrink 0.25, exactly one half is left.
  target = (-0.625, -0.625, 0.625, 0.625)
  tie = (-0.125, -0.625, 1.125, 0.625)
  assert geneval.relations(tie, target) == set()
  beyond = (-0.124, -0.625, 1.126, 0.625)
  assert geneval.relations(beyond, target) == {"right of"}


def test_shrink_uses_both_boxes_per_axis():
  wide = (0.0, -1.0, 40.0, 1.0)  # centre 20, sides 40 x 2
  small = (-1.0, -1.0, 1.0, 1.0)
  # 20 - 0.1 * (40 + 2) = 15.8; 15.8 / 20 > 0.5
  assert geneval.relations(wide, small) == {"right of"}
  wider = (-80.0, -1.0, 120.0, 1.0)  # centre 20, shrink 20.2
  assert geneval.relations(wider, small) == set()


def test_position_judges_the_second_clause_against_the_first():
  where = {"class": "square", "count": 1, "position": ["left of", 0]}
  position = task("position", CIRCLE, where)
  left = [found("circle", 20.0), found("square", 0.0)]
  right = [found("circle", 0.0), found("square", 20.0)]
  assert judge(position, left)[0]
  correct, reason = judge(position, right)
  assert not correct and "found right of" in reason
  correct, reason = judge(position, left[1:])
  assert not correct and "no target" in reason
  assert not judge(position, left[:1])[0]


def test_position_needs_every_object_against_every_target():
  two = {"class": "circle", "count": 2}
  where = {"class": "square", "count": 2, "position": ["above", 0]}
  position = task("position", two, where)
  circles = [found("circle", 0.0, 20.0), found("circle", 5.0, 20.0)]
  high = [found("square", 0.0, 0.0), found("square", 5.0, 0.0)]
  assert judge(position, circles + high)[0]
  low = [high[0], found("square", 5.0, 40.0)]
  assert not judge(position, circles + low)[0]
  assert not judge(position, [circles[0], found("circle", 0.0, -20.0)] + high)[
    0
  ]


def test_a_target_of_the_wrong_colour_is_no_target():
  where = {"class": "square", "count": 1, "position": ["left of", 0]}
  position = task("position", CIRCLE | {"color": "red"}, where)
  square = found("square", 0.0)
  assert judge(position, [found("circle", 20.0, colour="red"), square])[0]
  correct, reason = judge(
    position, [found("circle", 20.0, colour="blue"), square]
  )
  assert not correct and "no target" in reason


def test_overall_is_the_mean_of_tags_not_of_images():
  results = [
    *[Result("colors", "a red circle", True)] * 3,
    Result("colors", "a blue square", False),
    Result("position", "p", False),
    Result("position", "p", True),
    Result("counting", "c", False),
  ]
  scores = geneval.aggregate(results)
  assert scores["colors"] == 0.75
  assert scores["position"] == 0.5
  assert scores["counting"] == 0.0
  assert scores["overall"] == pytest.approx((0.75 + 0.5 + 0.0) / 3)
  assert scores["images"] == pytest.approx(4 / 7)
  assert scores["prompts"] == pytest.approx(2 / 4)
  assert set(scores) - {"overall", "images", "prompts"} == {
    "colors",
    "position",
    "counting",
  }


def test_aggregate_refuses_nothing_and_unknown_tags():
  with pytest.raises(ValueError, match="at least one image"):
    geneval.aggregate([])
  with pytest.raises(ValueError, match="'color' is unknown"):
    geneval.aggregate([Result("color", "p", True)])


def test_both_lists_of_tags_agree():
  assert shapes_text.TAGS == geneval.TAGS
