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


FID = {
  "fid": 8.25, "convention": "clean-fid", "generated": {"count": 30_000},
  "reference": {"count": 29_000, "kind": "all images"},
}  # fmt: skip
GENEVAL = {
  "scores": {"overall": 0.5}, "images": 2212, "prompts": "raw",
  "detector": "Mask2Former X",
}  # fmt: skip


def test_figures_on_coco_are_of_the_step_with_what_they_rest_on(tmp_path):
  write(tmp_path, [
    {"step": 9, "metric": "captions/cider_d", "value": 0.41,
     "settings": {"images": 1024, "decode": "greedy"}},
    {"step": 9, "metric": "fid/generated", "value": 1.0, "settings": {}},
  ])  # fmt: skip
  by = {"made_by": {"step": 9, "workdir": str(tmp_path), "cfg": 3.0}}
  (tmp_path / "coco_fid.json").write_text(json.dumps(FID | by))
  (tmp_path / "geneval.json").write_text(json.dumps(GENEVAL | by))
  found = paper_tables.coco_scores(str(tmp_path), 9)
  assert found == {
    "FID": (8.25, "30000 drawn, clean-fid, all images (29000)"),
    "GenEval": (0.5, "2212 drawn, raw prompts, Mask2Former X"),
    "COCO CIDEr": (pytest.approx(41.0), "images 1024, decode greedy"),
  }
  with pytest.raises(ValueError, match=r"coco_fid\.json .*step 9, now 8"):
    paper_tables.coco_scores(str(tmp_path), 8)
  # Images that nothing here drew belong to no run.
  (tmp_path / "geneval.json").write_text(json.dumps(GENEVAL | {"made_by": {}}))
  with pytest.raises(ValueError, match=r"geneval\.json .*workdir None, now '/"):
    paper_tables.coco_scores(str(tmp_path), 9)
  assert paper_tables.coco_scores(str(tmp_path / "none"), 9) == {}


def test_tables_on_coco_stand_beside_numbers_of_the_same_kind():
  """The paper's CIDEr of table 3 is an average of transfers, not COCO's."""
  table = paper_tables.on_coco(TABLES["table3"], own=True)
  found = [{"FID": 9.0, "COCO CIDEr": 40.0}] * len(table.arms)
  lines = paper_tables.render(table, found, ["FID: some."]).splitlines()
  assert lines[0] == "| Weight of the text loss | FID | COCO CIDEr |"
  assert lines[3] == "| Unified, λ = 2 | 9 [54.0] | 40.0 [–] |"
  assert lines[-2:] == [
    "In brackets the paper's, on its own data (0.7B).", "FID: some."
  ]  # fmt: skip
  table = paper_tables.on_coco(TABLES["table4"], own=True)
  found = [{"COCO CIDEr": 1.0}] * 2
  assert "| – [8.28] | – [0.59] | 1 [45.6] |" in paper_tables.render(
    table, found
  )


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
