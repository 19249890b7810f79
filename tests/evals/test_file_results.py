"""Published metrics of files as rows of the run that drew the files."""

import json

import numpy as np
import pytest

from tests.evals import test_geneval_files as geneval_case
from tests.evals import test_published as fid_case
from unifluid_jax.evals.published import (
  clip_score,
  drawn_images,
  file_results,
  geneval_files,
  published,
  published_prompts,
)
from unifluid_jax.evals.published.drawn_images import Drawing

HOW = {"cfg": 3.0, "sample_seed": 4, "ema": True}


def quiet(_):
  pass


def drawn(folder, workdir, step=7):
  """A folder of one image that a run drew."""
  by = {"run": "debug", "workdir": str(workdir), "step": step, **HOW}
  drawn_images.draw(
    fid_case.Painter(), [Drawing("0.png", "a cat", 1)], str(folder), 4, by,
    quiet,
  )  # fmt: skip
  return str(folder)


def test_images_know_their_checkpoint(tmp_path):
  folder = drawn(tmp_path / "images", tmp_path / "run")
  run = str(tmp_path / "other" / ".." / "run")  # another way to write it
  assert file_results.made_by(folder, run, None)["step"] == 7
  assert file_results.made_by(folder, run, 7)["step"] == 7
  with pytest.raises(ValueError, match="drawn at step 7: correct --step=8"):
    file_results.made_by(folder, run, 8)
  with pytest.raises(ValueError, match="by the run .*run, not by .*/other"):
    file_results.made_by(folder, str(tmp_path / "other"), None)


def test_images_of_unknown_origin_need_a_step(tmp_path):
  run = str(tmp_path)
  assert file_results.made_by(run, run, 5) == {"step": 5}
  with pytest.raises(ValueError, match="name it with --step"):
    file_results.made_by(run, run, None)


def by_metric(rows, by):
  """Values of rows that all say where they are from."""
  assert json.loads(json.dumps(rows)) == rows
  assert {(r["step"], r["by"], r["floor"]) for r in rows} == {(7, by, None)}
  for r in rows:
    assert r["settings"].items() >= HOW.items()
    assert not {"run", "workdir", "step", "state"} & set(r["settings"])
  return {r["metric"]: r["value"] for r in rows}


BY = {"run": "debug", "workdir": "w", "step": 7, "state": "a1", **HOW}


def test_rows_of_mjhq_have_each_category(tmp_path):
  meta, images = fid_case.write_mjhq(tmp_path)
  prompts = published_prompts.mjhq(meta, images, 0)
  run = published.Run(fid_case.Painter(), str(tmp_path / "drawn"), 4, BY)
  against = published.Against()
  result = published.mjhq_fid(
    fid_case.MeanColour(), run, prompts, against, quiet
  )
  parts = result["by_category"]
  parts["food"]["warning"] = "few"
  rows = file_results.rows(result, BY)
  assert by_metric(rows, "mjhq_fid") == {
    "mjhq_fid/distance": result["fid"],
    "mjhq_fid/animals": parts["animals"]["fid"],
    "mjhq_fid/food": parts["food"]["fid"],
  }
  assert rows[0]["settings"].items() >= {
    "images": 11, "convention": "clean-fid", "crop": 0, "network": "d1"
  }.items()  # fmt: skip
  assert [r["settings"]["images"] for r in rows] == [11, 6, 5]
  assert [r["settings"]["reference_images"] for r in rows] == [11, 6, 5]
  assert [r["settings"]["warning"] for r in rows] == ["", "", "few"]


def test_rows_of_a_folder_are_not_the_worlds_distance(tmp_path):
  fid_case.write_coco(tmp_path)
  net, path = fid_case.MeanColour(), str(tmp_path / "train")
  against = published.Against(path=f"{tmp_path}/captions.json:train")
  result = published.folder_fid(net, path, against, quiet)
  rows = file_results.rows(result, BY)
  assert by_metric(rows, "fid") == {"folder_fid/distance": result["fid"]}
  assert rows[0]["settings"]["reference"] == against.path
  assert rows[0]["settings"]["reference_images"] == 20


def test_rows_of_geneval_keep_prompts_apart(tmp_path):
  folder = geneval_case.draw(tmp_path / "images")
  found = geneval_case.detections(tmp_path / "found.json")
  result = geneval_files.score(folder, found, quiet)
  rows = file_results.rows(result, BY)
  want = dict(result["scores"])
  for share in ("images", "prompts"):  # no tasks of GenEval
    want[f"correct_{share}"] = want.pop(share)
  values = by_metric(rows, "geneval")
  assert values == {f"geneval_raw/{k}": v for k, v in want.items()}
  assert len(values) == 9
  assert rows[0]["settings"]["detector"] == "by hand"
  other = file_results.rows(result | {"prompts": "rewritten"}, BY)
  assert other[0]["metric"] == "geneval_rewritten/overall"


class Clip:
  name = "a fake"

  def images(self, images):
    return np.ones((len(images), 2))

  def texts(self, texts):
    return np.full((len(texts), 2), 3.0)


def test_rows_of_clip(tmp_path):
  folder = drawn(tmp_path / "images", tmp_path / "run")
  result = clip_score.score(folder, Clip(), quiet)
  rows = file_results.rows(result, BY)
  assert by_metric(rows, "clip_score") == pytest.approx(
    {"clip_score/clipscore_2.5_max_cos_0": 2.5, "clip_score/clip_100_cos": 100}
  )
  assert rows[0]["settings"]["network"] == "a fake"
