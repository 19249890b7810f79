"""GenEval on files: prompts to draw, images and detections to score.

Layout, results and summary are those of the benchmark's own code (Ghosh et
al., GenEval, arXiv 2310.11513), so that either side can be exchanged:
<folder>/<00000>/metadata.jsonl and <folder>/<00000>/samples/<00000>.png.

Prompts that were rewritten by a language model are another benchmark: a file
whose lines have a field "rewritten" beside the metadata is drawn from it, and
the result says so.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from unifluid_jax.core import files
from unifluid_jax.data import json_files
from unifluid_jax.evals.metrics import geneval
from unifluid_jax.evals.metrics.geneval import Detection
from unifluid_jax.evals.published import drawn_images, geneval_detections
from unifluid_jax.evals.published.drawn_images import Drawing, seed_of
from unifluid_jax.evals.published.geneval_detections import Detections

SAMPLES = 4  # images a prompt
RESULTS = "results.jsonl"
_IMAGES = 553 * SAMPLES

Metadata = Mapping[str, Any]


def read_prompts(path: str) -> list[dict[str, Any]]:
  """Lines of an evaluation_metadata.jsonl.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a line is none of GenEval's, or only some are rewritten.
  """
  file = epath.Path(path)
  if not file.exists():
    raise FileNotFoundError(f"no GenEval prompts at {path}")
  # str.splitlines would also break at U+2028, which JSON leaves bare.
  lines = [x for x in file.read_text().split("\n") if x.strip()]
  prompts = [_parse(line, f"{path}:{i}") for i, line in enumerate(lines, 1)]
  if not prompts:
    raise ValueError(f"{path} holds no prompts")
  kind_of(prompts, path)
  return prompts


def _parse(text: str, where: str) -> dict[str, Any]:
  """One line of metadata."""
  try:
    line = json_files.parse(text)
    known = line["tag"] in geneval.TAGS and bool(
      json_files.text(line["prompt"], "prompt")
    )
    # As in the benchmark's code, either list may be missing.
    include = line.get("include", ())
    for clause in (*include, *line.get("exclude", ())):
      known = known and isinstance(clause["class"], str) and clause["count"] > 0
    for i, clause in enumerate(include):
      if "position" in clause:
        _, target = clause["position"]
        known = known and 0 <= target < i
    known = known and bool(line.get("rewritten", "-").strip())
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{where}: no metadata of GenEval: {error!r}") from error
  if not known:
    raise ValueError(
      f"{where}: no metadata of GenEval: expected a tag of "
      f"{', '.join(geneval.TAGS)}, a prompt, clauses of class and count "
      "(a position refers to an earlier one), no blank rewritten prompt"
    )
  return line


def kind_of(prompts: Sequence[Metadata], where: str) -> str:
  """Which prompts were drawn: "raw" or "rewritten".

  Raises:
    ValueError: some are, some are not.
  """
  rewritten = sum("rewritten" in p for p in prompts)
  if rewritten not in (0, len(prompts)):
    raise ValueError(
      f"{where}: {rewritten} of {len(prompts)} prompts are rewritten: score "
      "raw and rewritten ones apart"
    )
  return "rewritten" if rewritten else "raw"


def drawings(
  prompts: Sequence[Metadata], samples: int = SAMPLES, seed: int = 0
) -> list[Drawing]:
  """All images in the benchmark's layout, each with a seed of its own."""
  return [
    Drawing(
      f"{i:05d}/samples/{k:05d}.png",
      p.get("rewritten", p["prompt"]),
      seed_of(seed, i, k, "noise"),
    )
    for i, p in enumerate(prompts)
    for k in range(samples)
  ]


def write_metadata(folder: str, prompts: Sequence[Metadata]) -> None:
  """The metadata.jsonl of every prompt, from process 0.

  Raises:
    ValueError: one is there, and is another.
  """
  if jax.process_index():
    return
  for i, prompt in enumerate(prompts):
    path = epath.Path(folder) / f"{i:05d}" / "metadata.jsonl"
    if not path.exists():
      files.write(path, json.dumps(prompt))
    elif json.loads(path.read_text()) != prompt:
      raise ValueError(
        f"{path} is of another prompt than {prompt['prompt']!r}: choose "
        "another --images"
      )


def images_below(folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Image files of a folder in GenEval's layout, and their metadata.

  Names consist of digits; whatever else is there is none of the benchmark's.

  Raises:
    FileNotFoundError: no such folder, or a prompt without its metadata.
  """
  root = epath.Path(folder)
  if not root.is_dir():
    raise FileNotFoundError(f"no folder of GenEval images at {folder}")
  for prompt in sorted(root.iterdir(), key=os.fspath):
    if not prompt.name.isdigit() or not prompt.is_dir():
      continue
    path = prompt / "metadata.jsonl"
    if not path.exists():
      raise FileNotFoundError(f"{path} is missing: what should be in there?")
    metadata = _parse(path.read_text(), os.fspath(path))
    for image in sorted((prompt / "samples").glob("*.png"), key=os.fspath):
      if image.stem.isdigit():
        yield f"{prompt.name}/samples/{image.name}", metadata


def score(
  folder: str, found: Detections, say: Callable[[str], None]
) -> dict[str, Any]:
  """Judges all images; writes results.jsonl beside them.

  Args:
    folder: in GenEval's layout.
    found: the detections of exactly these images.
    say: takes the summary.

  Returns:
    `geneval.aggregate`'s scores with what they rest on, as JSON.

  Raises:
    ValueError: no images or not all, detections of others, or no colours
      where the prompts ask for them.
  """
  drawn_images.check_complete(folder)
  images = dict(images_below(folder))
  kind = kind_of(list(images.values()), folder)
  _check_same(folder, images, found)
  rows = [
    judged(os.path.join(folder, name), metadata, found.images[name].objects)
    for name, metadata in images.items()
  ]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  files.write(epath.Path(folder) / RESULTS, text)
  # The benchmark's summary tells prompts apart by all of their metadata.
  scores = geneval.aggregate(
    geneval.Result(row["tag"], row["metadata"], row["correct"]) for row in rows
  )
  result = {
    "metric": "geneval",
    "prompts": kind,
    "scores": scores,
    "images": len(rows),
    "distinct_prompts": len({row["metadata"] for row in rows}),
    "detector": found.made_by["detector"],
    "made_by": drawn_images.drawn_by(folder),
    "warning": _warning(rows),
  }
  for line in lines(result):
    say(line)
  return result


def _check_same(
  folder: str, images: Mapping[str, Metadata], found: Detections
) -> None:
  if not images:
    raise ValueError(f"{folder} holds no images in GenEval's layout")
  geneval_detections.check(found, folder, images)
  missing = sorted(images.keys() - found.images.keys())
  if missing:
    raise ValueError(
      f"{folder}: no detections of {missing[0]} and {len(missing) - 1} more: "
      "run the detector on this very folder"
    )


def judged(
  filename: str, metadata: Metadata, detections: Sequence[Detection]
) -> dict[str, Any]:
  """The verdict on one image, in the fields of GenEval's results.

  Raises:
    ValueError: a colour that the prompt asks for was not classified.
  """
  kept = geneval.confident(detections, geneval.threshold(metadata["tag"]))
  for clause in metadata.get("include", ()):
    group = kept.get(clause["class"], [])[: clause["count"]]
    if "color" in clause and any(d.colour is None for d in group):
      raise ValueError(
        f"{filename}: its {clause['class']} has no colour, which the prompt "
        "asks for: run the detector with a colour classifier"
      )
  correct, reason = geneval.judge(metadata, detections)
  details = {
    name: [[*d.box, d.score] for d in group] for name, group in kept.items()
  }
  return {
    "filename": filename,
    "tag": metadata["tag"],
    "prompt": metadata["prompt"],
    "correct": correct,
    "reason": reason,
    "metadata": json.dumps(metadata),
    "details": json.dumps(details),
  }


def _warning(rows: Sequence[Mapping[str, Any]]) -> str:
  tags = {row["tag"] for row in rows}
  parts = []
  if len(rows) != _IMAGES:
    parts.append(f"{len(rows)} images, the benchmark has {_IMAGES}")
  if len(tags) != len(geneval.TAGS):
    parts.append(f"overall is the mean of {len(tags)} of six tags")
  return "; ".join(parts)


def lines(result: Mapping[str, Any]) -> list[str]:
  """The summary for people."""
  scores, name = result["scores"], f"geneval, {result['prompts']} prompts"
  out = [
    f"{name}: {tag:<14} {100 * scores[tag]:6.2f} %"
    for tag in geneval.TAGS
    if tag in scores
  ]
  out.append(
    f"{name}: overall {scores['overall']:.5f} (mean of the tags)  correct "
    f"images {100 * scores['images']:.2f} % of {result['images']}, correct "
    f"prompts {100 * scores['prompts']:.2f} % of {result['distinct_prompts']}"
    f"  ({result['detector']})"
  )
  if result["warning"]:
    out.append(f"{name}: {result['warning']}")
  return out
