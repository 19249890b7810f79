import json
import xml.etree.ElementTree as ET

import pytest

from unifluid_jax.evals import paper_tables

TABLES = paper_tables.TABLES


def write(workdir, rows):
  workdir.mkdir(parents=True, exist_ok=True)
  lines = [json.dumps(row) + "\n" for row in rows]
  (workdir / "metrics_eval.jsonl").write_text("".join(lines))


def test_scores_are_of_the_step_and_the_latest(tmp_path):
  write(tmp_path, [
    {"step": 5, "metric": "geneval/overall", "value": 0.1},
    {"step": 9, "metric": "geneval/overall", "value": 0.2},
    {"step": 9, "metric": "fid/generated", "error": "ValueError()"},
    {"step": 9, "metric": "vqa/all", "value": 0.7},
    {"step": 9, "metric": "geneval/overall", "value": 0.3},
    {"step": 9, "metric": "geneval/position", "value": 0.9},
    {"step": 11, "metric": "vqa/all", "value": 0.8},
  ])  # fmt: skip
  assert paper_tables.scores(str(tmp_path), 9) == {"GenEval": 0.3, "QA": 0.7}
  assert paper_tables.scores(str(tmp_path / "none"), 9) == {}


def test_a_table_stands_beside_the_papers():
  text = paper_tables.render(
    TABLES["table1"], [{"FID": 12.34, "GenEval": 0.5}, {"FID": 8.0}]
  )
  assert text.splitlines()[2:4] == [
    "| T2I only | 12.3 [7.88] | 0.5 [0.59] |",
    "| Unified | 8 [7.2] | – [0.59] |",
  ]


def test_arms_of_one_name_are_one_run():
  made = {}
  for table in TABLES.values():
    for arm in table.arms:
      key = (arm.argument, arm.flags, arm.metrics)
      assert made.setdefault(arm.name, key) == key


def test_the_figure_has_a_mark_for_every_run():
  weights = [0.01, 0.1, 1.0]
  results = [{"FID": f, "CIDEr": c, "QA": 0.5}
             for f, c in ((8.0, 1.0), (9.0, 2.0), (20.0, 3.0))]  # fmt: skip
  svg = paper_tables.weight_figure(weights, results)
  root = ET.fromstring(svg)
  circles = [e for e in root.iter() if e.tag.endswith("circle")]
  assert len(circles) == 9
  fid = circles[:3]
  x = [float(c.get("cx")) for c in fid]
  y = [float(c.get("cy")) for c in fid]
  assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)  # a log axis
  # 8, 9, 20: the middle one is a twelfth of the way up; y grows downwards.
  assert (y[0] - y[1]) / (y[0] - y[2]) == pytest.approx(1 / 12, abs=0.01)


def test_a_figure_without_a_curve_is_refused():
  with pytest.raises(ValueError, match="two runs"):
    paper_tables.weight_figure([0.1], [{}])
