"""The report page of a workdir, from the files a run and its evaluation left.

`report.py` knows how a page looks; this file knows where numbers come from.
"""

import datetime
from collections.abc import Sequence
from typing import Any

from etils import epath

from unifluid_jax import telemetry
from unifluid_jax.config import Config
from unifluid_jax.evals import report
from unifluid_jax.evals.bench import Shown

_HEADLINES = {
  "geneval/overall": "GenEval overall",
  "captions/cider_d": "CIDEr-D",
  "vqa/all": "VQA",
  "fid/generated": "Fréchet distance",
  "edits/success": "Edits done",
}
_LOWER = ("fid/generated", "fid/real", "fid/ratio")


def write(
  path: epath.Path,
  config: Config,
  workdir: str,
  step: int,
  shown: Sequence[Shown],
) -> None:
  """Writes report.html.

  Args:
    path: of the page.
    config: of the run.
    workdir: holds metrics.jsonl and metrics_eval.jsonl.
    step: the checkpoint that `shown` belongs to.
    shown: samples.
  """
  train = telemetry.read_metrics(f"{workdir}/metrics.jsonl")
  results = telemetry.read_metrics(f"{workdir}/metrics_eval.jsonl")
  good = [r for r in results if "value" in r]
  steps = tuple(sorted({r["step"] for r in good}))
  report.write_report(
    path,
    report.ReportData(
      name=config.name,
      step=step,
      date=datetime.date.today().isoformat(),
      config=_summary(config),
      checkpoints=steps,
      scores=_scores(good, steps),
      curves=tuple(
        report.curve_from_rows(train, key, title)
        for key, title in (
          ("loss_visual", "L_visual (MSE + VB)"),
          ("loss_text", "L_text (nats)"),
        )
        if any(key in row for row in train)
      ),
      geneval=_bars(good, step),
      floor_name="floor: unrelated real images",
      generations=tuple(
        report.Generation(s.prompt, s.image, s.correct, s.truth)
        for s in shown
        if s.kind == "generated"
      ),
      understanding=_understanding(shown),
      edits=tuple(
        report.EditSample(s.prompt, s.source, s.image, s.target, s.correct)
        for s in shown
        if s.kind == "edit"
      ),
      notes=_notes(good, results, step),
    ),
  )


def _summary(config: Config) -> dict[str, str]:
  d, m = config.model.decoder, config.model
  batch = ", ".join(f"{k} {v}" for k, v in config.batch.items() if v)
  return {
    "decoder": f"{d.depth} layers x {d.width}",
    "image tokens": f"{m.image_tokens} x {m.token_channels}",
    "batch": batch,
    "lambda": f"{config.loss.text_weight:g}",
    "optimizer": f"{config.optim.name}, lr {config.optim.lr:g}",
    "sampling": f"{config.sampling.steps} steps, cfg {config.sampling.cfg:g}",
  }


def _scores(
  rows: list[dict[str, Any]], steps: tuple[int, ...]
) -> tuple[report.ScoreRow, ...]:
  """One row a metric; a step scored twice shows its last result."""
  table: dict[str, dict[int, dict]] = {}
  for row in rows:
    table.setdefault(row["metric"], {})[row["step"]] = row
  out = []
  for name, found in table.items():
    group, _, rest = name.partition("/")
    latest = found[max(found)]
    out.append(
      report.ScoreRow(
        name=_HEADLINES.get(name, rest),
        values=tuple(found.get(s, {}).get("value") for s in steps),
        group=group.replace("_", " "),
        lower_is_better=name in _LOWER,
        floor=latest.get("floor"),
        headline=name in _HEADLINES,
      )
    )
  return tuple(out)


def _bars(rows: list[dict[str, Any]], step: int) -> tuple[report.TaskBar, ...]:
  prefix = "geneval/"
  return tuple(
    report.TaskBar(
      name=row["metric"].removeprefix(prefix).replace("_", " "),
      score=row["value"],
      floor=row["floor"],
      overall=row["metric"] == "geneval/overall",
    )
    for row in rows
    if row["step"] == step and row["metric"].startswith(prefix)
  )


def _understanding(
  shown: Sequence[Shown],
) -> tuple[report.Understanding, ...]:
  """Captions and answers of one image on one card."""
  cards: dict[bytes, dict[str, Any]] = {}
  for s in shown:
    if s.kind not in ("caption", "answer"):
      continue
    card = cards.setdefault(
      s.image.tobytes(), {"image": s.image, "answers": ()}
    )
    if s.kind == "caption":
      card |= dict(caption=s.output, references=(s.truth,), correct=s.correct)
    else:
      answer = report.Answer(s.prompt, s.output, s.truth, s.correct)
      card["answers"] += (answer,)
  return tuple(report.Understanding(**card) for card in cards.values())


def _notes(
  good: list[dict[str, Any]], rows: list[dict[str, Any]], step: int
) -> tuple[str, ...]:
  notes = []
  for row in good:
    if row["step"] != step:
      continue
    settings = ", ".join(f"{k}: {v}" for k, v in row["settings"].items() if v)
    notes.append(f"{row['metric'].partition('/')[0]}: {settings}")
  ways = {r["settings"].get("tokenizer") for r in good} - {None}
  if len(ways) > 1:
    notes.append(
      "captions were tokenized in different ways at different steps: "
      + "; ".join(sorted(ways))
    )
  notes += [
    f"{row['metric']} failed at step {row['step']}: {row['error']}"
    for row in rows
    if "error" in row and row["step"] == step
  ]
  return tuple(dict.fromkeys(n.removesuffix(": ") for n in notes))
