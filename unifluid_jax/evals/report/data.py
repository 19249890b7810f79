"""The report page of a workdir, from the files a run and its evaluation left.

`page.py` knows how a page looks; this file knows where numbers come from.
"""

import datetime
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from unifluid_jax.core import files, provenance, telemetry
from unifluid_jax.evals.bench import Shown
from unifluid_jax.evals.metrics import geneval as geneval_rules
from unifluid_jax.evals.report import page as report
from unifluid_jax.evals.report import run_facts, run_results, samples, scales

_GENEVAL = {  # group of metrics → name of its bars
  "geneval": "",
  "geneval_raw": "The benchmark's own prompts",
  "geneval_rewritten": "Rewritten prompts",
}
_TILES = 6  # as many as stand in one row
_COLUMNS = 8  # of samples over steps
_PROMPTS = 6

Row = Mapping[str, Any]
Found = Mapping[str, Mapping[int, Row]]  # metric → step → its last row


def write(
  path: epath.Path,
  workdir: str,
  name: str,
  summary: Mapping[str, str],
  losses: Mapping[str, str],
  credit: str = "",
) -> None:
  """Writes report.html of the newest step that was evaluated.

  Args:
    path: of the page.
    workdir: holds metrics.jsonl, metrics_eval.jsonl and samples/.
    name: of the run.
    summary: what its configuration says at a glance, label → value.
    losses: key in metrics.jsonl → title of its curve.
    credit: attribution of the data that it was trained on.
  """
  train = telemetry.read_metrics(f"{workdir}/{telemetry.METRICS}")
  rows = run_results.read(workdir)
  found = by_metric(rows)
  steps = tuple(sorted({step for each in found.values() for step in each}))
  step = max((r["step"] for r in rows), default=0)
  kept = samples.steps(workdir)
  shown = samples.read(workdir, kept[-1]) if kept else []
  sample_steps, grid = _over_steps(workdir, kept)
  began = provenance.read(workdir)
  targets = run_facts.targets(began)
  report.write_report(
    path,
    report.ReportData(
      name=name,
      step=step,
      date=datetime.date.today().isoformat(),
      config=summary,
      tiles=_tiles(found, step, targets),
      checkpoints=steps,
      scores=_scores(found, steps, targets),
      curves=tuple(
        report.curve_from_rows(train, key, title)
        for key, title in losses.items()
      ),
      rewards=tuple(
        report.curve_from_rows(train, key, title)
        for key, title in scales.REWARDS.items()
      ),
      progress=tuple(
        report.Chart(
          title, (curve(found, key, title),), *_reference(found, key)
        )
        for key, title in scales.CHARTS.items()
      ),
      geneval=_bars(found, step),
      floor_name="chance: unrelated real images",
      sample_steps=sample_steps,
      samples=grid,
      **_examples(shown),
      notes=_notes(rows, found, step, kept[-1] if kept else step),
      times=run_facts.times(train, rows),
      starts=run_facts.starts(began),
      attribution=credit,
      digest=_digest(rows),
    ),
  )


def _examples(shown: Sequence[Shown]) -> dict[str, tuple[Any, ...]]:
  """What the newest evaluation drew, said and changed, as `ReportData` has."""
  return dict(
    generations=tuple(generation(s) for s in shown if s.kind == "generated"),
    captions=tuple(
      report.Caption(
        image=s.image,
        text=s.output,
        references=s.references,
        score=s.score,
        correct=s.correct,
        group=s.task.replace("_", " "),
      )
      for s in shown
      if s.kind == "caption"
    ),
    answers=tuple(
      report.Answer(s.image, s.prompt, s.output, s.truth, s.correct, s.task)
      for s in shown
      if s.kind == "answer"
    ),
    edits=tuple(
      report.EditSample(
        s.prompt, s.source, s.image, s.target, s.correct, s.task
      )
      for s in shown
      if s.kind == "edit"
    ),
  )


def is_current(path: epath.Path, workdir: str) -> bool:
  """Whether the page is there and shows all results of the workdir."""
  end = report.mark(_digest(run_results.read(workdir)))
  return path.exists() and path.read_text().endswith(end)


def _digest(rows: Sequence[Row]) -> str:
  return files.digest(json.dumps(rows).encode())


def by_metric(rows: Iterable[Row]) -> dict[str, dict[int, Row]]:
  """Rows that have a value, by metric and step; of several the last."""
  found: dict[str, dict[int, Row]] = {}
  for row in rows:
    if "value" in row:
      found.setdefault(row["metric"], {})[row["step"]] = row
  return found


def curve(found: Found, name: str, title: str) -> report.Curve:
  """One metric over steps."""
  each = found.get(name, {})
  steps = tuple(sorted(each))
  return report.Curve(title, steps, tuple(each[s]["value"] for s in steps))


def drawn(workdir: str, step: int) -> dict[tuple[str, int | None], Shown]:
  """A step's generated images, by what two must share to be compared."""
  shown = samples.read(workdir, step)
  return {(s.prompt, s.seed): s for s in shown if s.kind == "generated"}


def generation(example: Shown | None) -> report.Generation | None:
  """A generated image as the page shows it; none for none."""
  if example is None:
    return None
  task = example.task.replace("_", " ")
  return report.Generation(
    example.prompt, example.image, example.correct, task, example.output,
    example.target,
  )  # fmt: skip


def _scores(
  found: Found, steps: Sequence[int], targets: run_facts.Targets
) -> tuple[report.ScoreRow, ...]:
  """One row for each metric."""
  out = []
  for name, each in found.items():
    group, title = scales.titled(name)
    out.append(
      report.ScoreRow(
        name=title,
        values=tuple(each.get(s, {}).get("value") for s in steps),
        group=group,
        lower_is_better=scales.lower_is_better(name),
        constant=scales.is_constant(name, run=True),
        floor=each[max(each)].get("floor"),
        bar=targets.get(name),
      )
    )
  return tuple(out)


def _tiles(
  found: Found, step: int, targets: run_facts.Targets
) -> tuple[report.Tile, ...]:
  """The first headlines that the run has, each at its newest step.

  What another command scored at some step only heads the page of that step.
  """
  out = []
  for name, scale in scales.HEADLINES.items():
    each = found.get(name, {})
    latest = each.get(max(each, default=step))
    if latest is None or ("by" in latest and step not in each):
      continue
    if not math.isfinite(latest["value"]):
      continue
    floor, bar = latest.get("floor"), targets.get(name)
    out.append(
      report.Tile(
        name=scale.title,
        value=latest["value"] * scale.factor,
        unit=scale.unit,
        digits=scale.digits,
        lower_is_better=scales.lower_is_better(name),
        end=scale.end,
        floor=None if floor is None else floor * scale.factor,
        bar=None if bar is None else bar * scale.factor,
        remark="" if step in each else f"at step {max(each):,}",
      )
    )
  return tuple(out[:_TILES])


def _reference(found: Found, name: str) -> tuple[float | None, str]:
  """The dashed line of a metric's chart, and its name."""
  name = "fid/real" if name == "fid/generated" else name
  each = found.get(name, {})
  if not each:
    return None, ""
  latest = each[max(each)]
  if name == "fid/real":
    return latest["value"], "real images"
  return latest.get("floor"), "chance"


def _bars(found: Found, step: int) -> tuple[report.TaskBar, ...]:
  """GenEval at one step, its tasks in the benchmark's order."""
  return tuple(
    report.TaskBar(
      name=tag.replace("_", " "),
      score=found[name][step]["value"],
      floor=found[name][step]["floor"],
      overall=tag == "overall",
      group=title,
      curve=curve(found, name, title),
    )
    for group, title in _GENEVAL.items()
    for tag in ("overall", *geneval_rules.TAGS)
    if step in found.get(name := f"{group}/{tag}", {})
  )


def _over_steps(
  workdir: str, kept: Sequence[int]
) -> tuple[tuple[int, ...], tuple[report.SampleRow, ...]]:
  """The newest step's first prompts of each task, at the steps before it too.

  Nothing with a single step: the page shows its samples anyway.
  """
  steps = _spread(kept, _COLUMNS)
  columns = [drawn(workdir, s) for s in steps]
  rows = [
    report.SampleRow(
      prompt=key[0], drawn=tuple(generation(c.get(key)) for c in columns)
    )
    for key in _first_of_each_task(columns[-1] if columns else {})
  ]
  rows = [r for r in rows if sum(d is not None for d in r.drawn) > 1]
  return (tuple(steps), tuple(rows)) if rows else ((), ())


def _first_of_each_task(drawn: Mapping[Any, Shown]) -> list[Any]:
  """A few examples' keys: one of each task, then a second of each, ..."""
  seen: dict[str, int] = {}
  ranked = []
  for key, example in drawn.items():
    seen[example.task] = seen.get(example.task, 0) + 1
    ranked.append((seen[example.task], key))
  return [key for _, key in sorted(ranked, key=lambda r: r[0])][:_PROMPTS]


def _spread(steps: Sequence[int], count: int) -> list[int]:
  """At most `count` of them, the first and the last among these."""
  if len(steps) <= count:
    return list(steps)
  last = len(steps) - 1
  return [steps[round(i * last / (count - 1))] for i in range(count)]


def _notes(
  rows: Sequence[Row], found: Found, step: int, shown_step: int
) -> tuple[str, ...]:
  notes = _settings({k: v[step] for k, v in found.items() if step in v})
  scored = [row for each in found.values() for row in each.values()]
  ways = {row["settings"].get("tokenizer") for row in scored} - {None}
  if len(ways) > 1:
    notes.append(
      "captions were tokenized in different ways at different steps: "
      + "; ".join(sorted(ways))
    )
  notes += [
    f"{metric} failed at step {step}: {error}"
    for metric, error in run_results.failures(rows).get(step, {}).items()
  ]
  if shown_step != step:
    notes.append(f"the newest samples are of step {shown_step}")
  return tuple(dict.fromkeys(notes))


def _settings(rows: Mapping[str, Row]) -> list[str]:
  """A group's settings, then what those of its other metrics have anew."""
  notes, firsts = [], {}
  for name, row in rows.items():
    group, settings = name.partition("/")[0], row["settings"]
    first = firsts.get(group, {})
    anew = {k: v for k, v in settings.items() if v and first.get(k) != v}
    text = ", ".join(f"{k}: {v}" for k, v in anew.items())
    if group not in firsts:
      firsts[group] = settings
      notes.append(f"{group}: {text}".removesuffix(": "))
    elif text:
      notes.append(f"{name}: {text}")
  return notes
