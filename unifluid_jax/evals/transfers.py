"""The transfer tasks' numbers, and the two averages the paper prints of them.

Sources: UniFluid §5.1 and tables 1 to 4 (Cap Avg of 4 numbers, QA Avg of 20);
splits, decoding and metrics are PaliGemma's (`data/tasks.py`).
"""

import math
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath

from unifluid_jax.core import telemetry
from unifluid_jax.core.config import Config, SourceConfig
from unifluid_jax.data.records import BadRecord
from unifluid_jax.data.transfers import tasks
from unifluid_jax.data.transfers.files import Example
from unifluid_jax.data.transfers.source import TaskSource
from unifluid_jax.evals.bench import Bench, Outcome, Shown, Subject
from unifluid_jax.evals.metrics import answers as answer_metrics
from unifluid_jax.evals.metrics import ptb
from unifluid_jax.evals.report import run_results

METRIC = "transfer"
_CHUNK = 512  # images in memory at once
_SHOWN = 8
_GROUPS = {"caption": "Cap Avg", "qa": "QA Avg"}


def transfer(subject: Subject, bench: Bench) -> Outcome:
  """Every transfer task of config.data.eval whose weight is not 0.

  All examples are asked, or the first `limit` of the source. Those whose image
  cannot be decoded are left out and counted as "skipped": such a score does
  not count in the paper's tables. Values are in the metric's own units: papers
  print them times 100.

  Raises:
    ValueError: no task there, one whose answers are all hidden, or one without
      any readable image.
    FileNotFoundError: a data set is missing.
  """
  values, settings, shown = {}, {}, []
  for entry, source in _sources(bench.config):
    row = source.row
    examples, said, looks = _predict(subject, bench, source)
    found = score(row, examples, said)
    name = f"{METRIC}/{row.name}"
    values[name] = found.value
    values |= {f"{name}/{part}": v for part, v in found.parts.items()}
    settings[row.name] = {
      "split": entry.split,
      "metric": row.metric,
      **bench.answered(),
      "scored": len(found.scores),
      "unanswered": source.unanswered,
      "limit": entry.limit,
    }
    if len(examples) < len(source):
      settings[row.name]["skipped"] = len(source) - len(examples)
    if row.metric == "cider_d":
      settings[row.name]["tokenizer"] = ptb.chosen().name
    shown += _shown(row, examples, said, looks, found)
  return Outcome(values, {}, settings, shown)


def score(
  row: tasks.Row, examples: Sequence[Example], answers: Sequence[str]
) -> answer_metrics.Scored:
  """A row's metric over the examples that have an answer.

  Args:
    row: the task; its metric and casing count.
    examples: of one split.
    answers: one prediction an example, in their order.

  Raises:
    ValueError: other numbers of answers than of examples, or no example
      whose answer is public.
  """
  if len(examples) != len(answers):
    raise ValueError(
      f"{row.name}: {len(answers)} answers to {len(examples)} examples: "
      "predict each of them once"
    )
  pairs = [
    (e, a)
    for e, a in zip(examples, answers, strict=True)
    if tasks.answered(row, e)
  ]
  if not pairs:
    raise ValueError(
      f"{row.name}: no example has a public answer: score split {row.split!r}, "
      "or send the predictions to the task's server"
    )
  kinds = {e.id: e.kind for e, _ in pairs if e.kind}
  return answer_metrics.METRICS[row.metric](
    [(e.id, tasks.targets(row, e)) for e, _ in pairs],
    [(e.id, a) for e, a in pairs],
    kinds if len(kinds) == len(pairs) else None,
  )


def _sources(config: Config) -> Iterator[tuple[SourceConfig, TaskSource]]:
  """The tasks to score, opened one after another."""
  chosen = {
    key: entry
    for key, entry in config.data.eval.items()
    if entry.format == "transfer" and entry.weight
  }
  if not chosen:
    raise ValueError(
      f"config.eval.metrics names {METRIC!r}, but no source of "
      "config.data.eval has format 'transfer': use configs/transfer.py"
    )
  for key, entry in chosen.items():
    yield entry, TaskSource(entry, config.data.root, f"data.eval.{key}")


def _predict(
  subject: Subject, bench: Bench, source: TaskSource
) -> tuple[list[Example], list[str], list[tuple[Any, str]]]:
  """The readable examples with an answer each; a few images and prompts."""
  progress = telemetry.Progress(source.row.name, 0, len(source))
  examples: list[Example] = []
  said: list[str] = []
  looks: list[tuple[Any, str]] = []
  with ThreadPoolExecutor(max(1, bench.config.data.threads)) as pool:
    for start in range(0, len(source), _CHUNK):
      rows = range(start, min(start + _CHUNK, len(source)))
      seen = list(pool.map(lambda i: _look(subject, source, i), rows))
      examples += [source.examples[i] for i, s in zip(rows, seen, strict=True)
                   if s is not None]  # fmt: skip
      good = [s for s in seen if s is not None]
      if good:
        images, prompts = zip(*good, strict=True)
        said += subject.answers(images, prompts)
      looks += good[: _SHOWN - len(looks)]
      bench.say(progress.line(rows[-1] + 1, "answered")[0])
  if not examples:
    raise ValueError(
      f"{source.row.name}: none of {len(source)} images can be read, see the "
      "log: unpack the task's images anew"
    )
  return examples, said, looks


def _look(
  subject: Subject, source: TaskSource, i: int
) -> tuple[np.ndarray, str] | None:
  """Image and prompt of an example; None, and a warning, if unreadable."""
  try:
    record = source[i]
    return subject.look(record), record.questions[0][0]
  except BadRecord as error:
    logging.warning(
      "left out of the scores: %s[%s]: %s",
      source.row.name, source.examples[i].id, error,
    )  # fmt: skip
    return None


def _shown(
  row: tasks.Row,
  examples: Sequence[Example],
  said: Sequence[str],
  looks: Sequence[tuple[Any, str]],
  found: answer_metrics.Scored,
) -> list[Shown]:
  """The first examples; an answer is right at full marks, wrong at none."""
  shown = []
  for example, text, (image, prompt) in zip(
    examples, said, looks, strict=False
  ):
    one = image if image.ndim == 3 else image[0]
    points = found.scores.get(example.id)
    if row.group == "caption":
      s = Shown("caption", one, prompt, text, references=example.answers,
                score=points, task=row.title)  # fmt: skip
    else:
      truth, right = "".join(example.answers[:1]), {0: False, 1: True}
      s = Shown("answer", one, prompt, text, truth, right.get(points),
                task=row.title)  # fmt: skip
    shown.append(s)
  return shown


# -------------------------------------------------------------- many workdirs


class Result(NamedTuple):
  """The newest value of one number."""

  value: float  # in the metric's own units
  step: int
  workdir: str
  settings: Mapping[str, Any]


class Table(NamedTuple):
  """What the paper's tables need; an average is None until it is complete."""

  text: str
  cap_avg: float | None
  qa_avg: float | None
  missing: tuple[str, ...]  # names of the rows that do not count yet


def workdirs_below(root: str) -> list[str]:
  """Folders right below one that hold results.

  Raises:
    FileNotFoundError: none does.
  """
  folders = sorted(map(os.fspath, epath.Path(root).glob("*")))
  found = [folder for folder in folders if run_results.exist(folder)]
  if not found:
    raise FileNotFoundError(
      f"no folder of {root} holds {run_results.FILE}: evaluate the transfer "
      "runs first"
    )
  return found


def collect(workdirs: Iterable[str]) -> dict[str, Result]:
  """Each row's newest result.

  Raises:
    ValueError: two workdirs that both score a row, or a row that is unknown.
    FileNotFoundError: a workdir without results.
  """
  found: dict[str, Result] = {}
  for workdir in workdirs:
    if not run_results.exist(workdir):
      raise FileNotFoundError(
        f"no {workdir}/{run_results.FILE}: evaluate this workdir first"
      )
    for line in run_results.read(workdir):
      group, _, name = line["metric"].partition("/")
      if group != METRIC or "/" in name or "value" not in line:
        continue
      name = tasks.named(name).name
      old = found.get(name)
      if old and old.workdir != workdir:
        raise ValueError(
          f"{name} is scored in {old.workdir} and in {workdir}: name one of "
          "them"
        )
      if old and old.step > line["step"]:
        continue
      settings = line["settings"][name]
      found[name] = Result(line["value"], line["step"], workdir, settings)
  return found


def table(results: Mapping[str, Result]) -> Table:
  """The 24 rows in the papers' order and units, and both averages.

  A row counts once it is scored whole, decoded as PaliGemma decodes it, on
  the split that published 3B models are compared on. The averages are plain
  means of 4 captioning and of 20 question-answering numbers; an average that
  lacks one is not printed, nor one of captions tokenized in different ways.

  Args:
    results: by row, as `collect` gives them.
  """
  head = ("task", "split", "decode", "metric", "value", "")
  lines = ["{:<18} {:<17} {:<8} {:<11} {:>8}  {}".format(*head).rstrip()]
  missing = []
  for row in tasks.ROWS:
    result = results.get(row.name)
    reason = "not evaluated" if result is None else _objection(row, result)
    settings = {} if result is None else result.settings
    lines.append(
      "{:<18} {:<17} {:<8} {:<11} {:>8}  {}".format(
        row.title,
        settings.get("split", row.split),
        settings.get("decode", "-"),
        row.metric,
        "-" if result is None else f"{100 * result.value:.2f}",
        reason or _origin(result),
      ).rstrip()
    )
    if reason:
      missing.append(row.name)
  ways = {r.settings.get("tokenizer", "") for r in results.values()} - {""}
  averages = {}
  for group, title in _GROUPS.items():
    rows = [row for row in tasks.ROWS if row.group == group]
    lacking = [row.title for row in rows if row.name in missing]
    text = f"- ({len(rows) - len(lacking)} of {len(rows)} rows count; "
    text += f"missing: {', '.join(lacking)})"
    averages[group] = None
    if group == "caption" and len(ways) > 1:
      text = "- (tokenized in several ways, see below: evaluate all in one)"
    elif not lacking:
      mean = statistics.fmean(results[row.name].value for row in rows)
      averages[group] = 100 * mean
      text = f"{averages[group]:.2f} (mean of {len(rows)})"
    lines.append(f"{title:<8} {text}")
  lines += [f"CIDEr-D tokenizer: {way}" for way in sorted(ways)]
  return Table("\n".join(lines), *averages.values(), tuple(missing))


def _objection(row: tasks.Row, result: Result) -> str:
  """Why a value is not the row's number; nothing if it is."""
  if result.settings["split"] != row.split:
    return f"does not count: the number is of split {row.split}"
  usual = f"beam {row.beam}" if row.beam > 1 else "greedy"
  if result.settings["decode"] != usual:
    return f"does not count: the number is decoded by {usual}"
  if result.settings["limit"]:
    return f"does not count: the first {result.settings['limit']} examples"
  if skipped := result.settings.get("skipped"):
    return f"does not count: {skipped} unreadable images left out"
  if not math.isfinite(result.value):
    return "does not count: not a finite number"
  return ""


def _origin(result: Result) -> str:
  """Where a number comes from."""
  text = f"step {result.step}, {result.workdir}"
  left = result.settings["unanswered"]
  return text + (f", {left} unanswered left out" if left else "")


def summary(workdirs: Sequence[str], root: str | None) -> str:
  """The table of the given workdirs, or of those right below `root`.

  Raises:
    ValueError, FileNotFoundError: as `collect` and `workdirs_below`; neither
      or both of the arguments.
  """
  if bool(workdirs) == bool(root):
    raise ValueError(
      "--suite=transfers takes --workdirs=A,B,... or --root=DIR, one of them"
    )
  return table(collect(workdirs or workdirs_below(str(root)))).text
