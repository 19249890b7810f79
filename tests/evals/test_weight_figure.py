import xml.etree.ElementTree as ET

import pytest

from unifluid_jax.evals.published import weight_figure


def parsed(weights, results):
  """Coordinates of the marks and all texts."""
  root = ET.fromstring(weight_figure.render(weights, results))
  marks = [
    (float(e.get("cx")), float(e.get("cy")))
    for e in root.iter()
    if e.tag.endswith("circle")
  ]
  return marks, [e.text for e in root.iter() if e.tag.endswith("text")]


def test_a_panel_a_score_and_a_mark_a_run():
  results = [{"FID": f, "CIDEr": 1.0, "QA": q, "GenEval": 0.5}
             for f, q in ((8.0, 0.5), (9.0, 0.7), (20.0, 0.6))]  # fmt: skip
  marks, texts = parsed([0.01, 0.1, 1.0], results)
  assert len(marks) == 12
  assert [t for t in texts if t[-1] in "↓↑"] == [
    "FID ↓", "GenEval ↑", "CIDEr ↑", "QA ↑"
  ]  # fmt: skip
  assert texts[1:7] == ["8", "0.01", "9", "0.1", "20.0", "1"]
  x, y = zip(*marks[:3], strict=True)
  assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)  # a log axis
  # 8, 9, 20: the middle one is a twelfth of the way up; y grows downwards.
  assert (y[0] - y[1]) / (y[0] - y[2]) == pytest.approx(1 / 12, abs=0.01)


def test_differences_that_are_noise_are_drawn_flat():
  spread = {}
  for share in (0.0, 0.001, 0.1, 0.9):
    results = [{"CIDEr": 8.0}, {"CIDEr": 8.0 * (1 - share)}]
    (_, a), (_, b) = parsed([0.1, 1.0], results)[0]
    spread[share] = b - a
  assert spread[0.0] == 0
  assert spread[0.1] == spread[0.9] > 100
  assert 0 < spread[0.001] < 0.02 * spread[0.9]


def test_runs_that_lack_a_score_have_no_mark():
  results = [{"FID": 8.0}, {"FID": 9.0, "COCO CIDEr": 40.0}, {}]
  marks, texts = parsed([0.01, 0.1, 1.0], results)
  assert len(marks) == 2 and "COCO CIDEr ↑" not in texts
  assert weight_figure.render([0.01, 0.1], [{"FID": 8.0}, {}]) == ""
