import json

import pytest

from unifluid_jax.evals.published import paper_tables

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


def checkpoint(workdir, step=9, seed=0, world=None, **meta):
  """What a run notes beside its state, as far as tables read it."""
  config = {
    "seed": seed, "text": {"tokenizer": "t.model"},
    "data": {"root": "d", "world": world or {},
             "train": {"a": {"path": "a.json"}, "b": {"path": "b"}}},
  }  # fmt: skip
  file = workdir / "checkpoints" / str(step) / "meta/metadata"
  file.parent.mkdir(parents=True)
  file.write_text(json.dumps({"config": config, **meta}))
  return str(workdir)


def test_a_table_says_what_its_runs_were_trained_on(tmp_path):
  world = {"train": 16_000, "seed": 3}
  runs = {
    name: checkpoint(
      tmp_path / name,
      world=world,
      tokenizer_sha256="ab12" * 16,
      identity={"codec": {"weights": "cd34" * 16}},
    )  # fmt: skip
    for name in ("One", "Two")
  }
  ours = (
    "embedded world, 16000 scenes, seed 3, in d; tokenizer t.model (ab12ab12); "
    "codec cd34cd34; 9 steps, seed 0."
  )
  assert paper_tables.basis(runs, 9) == [f"Ours: {ours}"]
  runs["Three"] = checkpoint(tmp_path / "Three", seed=5)
  runs["Four"] = str(tmp_path / "none")
  assert paper_tables.basis(runs, 9) == [
    f"One; Two: {ours}",
    "Three: a.json, b, in d; tokenizer t.model (digest not known); codec "
    "not known; 9 steps, seed 5.",
    "Four: not known, as the checkpoint is gone.",
  ]
