"""Published metrics of files as rows of the run that drew them.

metrics_eval.jsonl holds them beside the evaluation job's own. They name the
command in "by", and their groups are no names of that job's metrics: GenEval
of the embedded world is not GenEval.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath

from unifluid_jax.evals.published import drawn_images

Result = Mapping[str, Any]
Scored = tuple[float, dict[str, Any]]  # a value and its settings


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
  who = ("run", "workdir", "step", "state")
  how = {k: v for k, v in by.items() if k not in who}
  return [
    {
      "step": by["step"],
      "metric": name,
      "value": value,
      "floor": None,
      "settings": settings | how,
      "by": result["metric"],
    }
    for name, (value, settings) in _READERS[result["metric"]](result).items()
  ]


def _distance(result: Result) -> dict[str, Scored]:
  # "fid" alone is the embedded world's own distance.
  group = {"fid": "folder_fid"}.get(result["metric"], result["metric"])
  parts = {"distance": result, **result.get("by_category", {})}
  return {
    f"{group}/{name}": (part["fid"], _compared(part))
    for name, part in parts.items()
  }


def _compared(part: Result) -> dict[str, Any]:
  """Settings of one distance; a category has its own counts and warning."""
  made, real = part["generated"], part["reference"]
  return {
    "images": made["count"],
    **_skipped("skipped", made),
    **_skipped("reference_skipped", real),
    "reference": real["source"],
    "reference_kind": real["kind"],
    "reference_images": real["count"],
    "convention": part["convention"],
    "crop": made["crop"],
    "network": made["digest"],
    "warning": part["warning"],
  }


def _skipped(key: str, result: Result) -> dict[str, int]:
  """How many images could not be read, where any could not."""
  count = result.get("skipped", 0)
  return {key: count} if count else {}


def _geneval(result: Result) -> dict[str, Scored]:
  group, scores = f"geneval_{result['prompts']}", dict(result["scores"])
  values = {f"{group}/overall": scores.pop("overall")}
  for share in ("images", "prompts"):
    values[f"{group}/correct_{share}"] = scores.pop(share)
  values |= {f"{group}/{tag}": value for tag, value in scores.items()}
  keys = ("images", "distinct_prompts", "detector", "warning")
  settings = {key: result[key] for key in keys}
  return {name: (value, settings) for name, value in values.items()}


def _clip(result: Result) -> dict[str, Scored]:
  settings = {key: result[key] for key in ("images", "network", "text")}
  settings |= _skipped("skipped", result)
  scores = result["scores"].items()
  return {f"clip_score/{name}": (value, settings) for name, value in scores}


_READERS = {
  "fid": _distance,
  "coco_fid": _distance,
  "mjhq_fid": _distance,
  "geneval": _geneval,
  "clip_score": _clip,
}
