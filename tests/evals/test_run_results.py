"""Which metrics of which steps are done, have failed, are left."""

from tests.systems.conftest import tiny
from unifluid_jax.evals.bench import Outcome
from unifluid_jax.evals.report import run_results


def value(step, metric, **more):
  return {"step": step, "metric": metric, "value": 0.5} | more


def failed(step, metric):
  return {"step": step, "metric": metric, "error": "no"}


def ended(step, metric):
  return {"step": step, "metric": metric, "seconds": 1.0}


METRICS = ("vqa", "fid", "samples")


def test_a_later_success_supersedes_a_failure_and_not_the_reverse():
  rows = [failed(1, "fid"), value(1, "fid/generated"), ended(1, "fid"),
          failed(2, "fid"), ended(2, "vqa"), ended(3, "fid"),
          failed(3, "fid")]  # fmt: skip
  assert run_results.failures(rows) == {2: {"fid": "no"}, 3: {"fid": "no"}}


def test_only_what_failed_is_left_of_a_step():
  rows = [ended(1, "vqa"), ended(1, "samples"),
          value(2, "coco_fid/distance", by="coco_fid"),
          value(3, "vqa/all"), failed(3, "fid"), failed(3, "gone")]  # fmt: skip
  assert run_results.to_run(rows, METRICS) == {1: (), 3: ("fid",)}


def test_results_of_before_metrics_left_a_row_each_count_as_done():
  rows = [value(1, "vqa/all"), value(2, "vqa/all"), failed(2, "fid")]
  assert run_results.to_run(rows, METRICS) == {1: (), 2: ("fid",)}


def test_rows_name_what_scores_depend_on_beside_the_metric():
  found = Outcome({"fid/ratio": 1.5}, {"fid/ratio": 9.0}, {"images": 8})
  (row,) = run_results.as_rows(7, found, tiny(optim__ema=0.0))
  assert row == {
    "step": 7, "metric": "fid/ratio", "value": 1.5, "floor": 9.0,
    "settings": {"images": 8},
  }  # fmt: skip
  other = tiny(eval__use_ema=False, optim__ema=0.9, eval__seed=3)
  (row,) = run_results.as_rows(7, found, other)
  assert row["settings"] == {"images": 8, "ema": False, "seed": 3}
