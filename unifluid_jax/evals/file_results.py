"""Published metrics of files as rows of the run that drew them.

metrics_eval.jsonl holds them beside the evaluation job's own. They name the
command in "by", and their groups are no names of that job's metrics: GenEval
of the embedded world is not GenEval.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath

from unifluid_jax.evals import drawn_images

Result = Mapping[str, Any]


def made_by(images: str, workdir: str, step: int | None) -> dict[str, Any]:
  """What drew a folder of images: "step", and how where that is known.

  Args:
    images: the folder.
    workdir: of the run that the images are said to be of.
    step: what --step says.

  Raises:
    ValueError: another run or step drew them, or nothing says which did.
  """
  if not (epath.Path(images) / drawn_images.MANIFEST).exists():
    if step is None:
      raise ValueError(
        f"{images} does not say which checkpoint drew it (it has no "
        f"{drawn_images.MANIFEST}): name it with --step, or leave out "
        "--workdir"
      )
    return {"step": step}
  by = drawn_images.read_manifest(images)["by"]
  if by.get("workdir") != drawn_images.home(workdir):
    raise ValueError(
      f"{images} was drawn by the run {by.get('workdir')}, not by {workdir}: "
      "correct --workdir, or leave it out"
    )
  if step not in (None, by["step"]):
    raise ValueError(
      f"{images} was drawn at step {by['step']}: correct --step={step}, or "
      "leave it out"
    )
  return by


def rows(result: Result, by: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Rows of metrics_eval.jsonl.

  Args:
    result: what a function of `published`, `geneval_files.score` or
      `clip_score.score` returned.
    by: `made_by` of its images.
  """
  values, settings = _READERS[result["metric"]](result)
  how = {k: v for k, v in by.items() if k not in ("run", "workdir", "step")}
  return [
    {
      "step": by["step"],
      "metric": name,
      "value": value,
      "floor": None,
      "settings": settings | how,
      "by": result["metric"],
    }
    for name, value in values.items()
  ]


def _distance(result: Result) -> tuple[dict[str, float], dict[str, Any]]:
  # "fid" alone is the embedded world's own distance.
  group = {"fid": "folder_fid"}.get(result["metric"], result["metric"])
  values = {f"{group}/distance": result["fid"]}
  for name, part in result.get("by_category", {}).items():
    values[f"{group}/{name}"] = part["fid"]
  made, real = result["generated"], result["reference"]
  settings = {
    "images": made["count"],
    "reference": real["source"],
    "reference_kind": real["kind"],
    "reference_images": real["count"],
    "convention": result["convention"],
    "crop": made["crop"],
    "network": made["digest"],
    "warning": result["warning"],
  }
  return values, settings


def _geneval(result: Result) -> tuple[dict[str, float], dict[str, Any]]:
  group, scores = f"geneval_{result['prompts']}", dict(result["scores"])
  values = {f"{group}/overall": scores.pop("overall")}
  for share in ("images", "prompts"):
    values[f"{group}/correct_{share}"] = scores.pop(share)
  values |= {f"{group}/{tag}": value for tag, value in scores.items()}
  keys = ("images", "distinct_prompts", "detector", "warning")
  return values, {key: result[key] for key in keys}


def _clip(result: Result) -> tuple[dict[str, float], dict[str, Any]]:
  values = {f"clip_score/{k}": v for k, v in result["scores"].items()}
  return values, {key: result[key] for key in ("images", "network", "text")}


_READERS = {
  "fid": _distance,
  "coco_fid": _distance,
  "mjhq_fid": _distance,
  "geneval": _geneval,
  "clip_score": _clip,
}
