"""The paper's controlled experiments: which runs each needs, and its table.

UniFluid (arXiv 2503.13436) tables 1 to 4; `weight_figure` draws figure 3. In
the embedded world the columns are its own figures of the same kind, so only
trends compare; on COCO they are the paper's.
"""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from etils import epath

from unifluid_jax.core import checkpoint
from unifluid_jax.evals.published.drawn_images import changed, home
from unifluid_jax.evals.report import run_results

# Column of a table → metric of the embedded world that stands for it.
COLUMNS = {
  "FID": "fid/generated",
  "GenEval": "geneval/overall",
  "CIDEr": "captions/cider_d",
  "QA": "vqa/all",
}
WORLD_NOTE = (
  "Ours are the embedded world's own figures of the same kind (FID: in its "
  "scene classifier's features; CIDEr-D: 0 to 10): trends compare, numbers do "
  "not."
)
_DRAWS, _READS = ("geneval", "fid"), ("captions", "vqa")

# Column on COCO → file of the workdir that `python -m unifluid_jax.evaluate`
# wrote with --out, and the metrics to write it.
COCO_FILES = {
  "FID": ("coco_fid.json", ("coco_fid",)),
  "GenEval": (
    "geneval.json", ("geneval_draw", "geneval_detect", "geneval_score")
  ),
}  # fmt: skip
COCO_CIDER = "COCO CIDEr"


class Arm(NamedTuple):
  """One run of an experiment; arms of the same name are the same run."""

  name: str  # of its folder
  title: str  # as the table's row begins
  argument: str = ""  # of the configuration file, see configs.base.ablate
  flags: tuple[str, ...] = ()  # further changes, as of the command line
  metrics: tuple[str, ...] = _DRAWS + _READS
  config: str = ""  # file of its own
  published: Mapping[str, float] = {}  # column → the paper's number
  follows: str = ""  # name of the arm whose weights it starts from
  # Prefix of config.init → the arm that gives this part, or its "ARM#PART".
  starts: Mapping[str, str] = {}
  share: float = 1.0  # of the budget's steps
  where: Mapping[str, float] = {}  # settings that its scores were found with
  # Configuration and workdir of an image tokenizer of its own, trained first.
  codec: tuple[str, str] | None = None


class Table(NamedTuple):
  """One table of the paper."""

  title: str
  columns: tuple[str, ...]
  arms: tuple[Arm, ...]
  sizes: str  # of the models that the paper's numbers belong to
  config: str  # of such a model
  coco: tuple[str, ...] = ("FID", "GenEval")  # columns on COCO


class Study(NamedTuple):
  """One experiment, of several seeds each."""

  title: str
  config: str  # file that its arms vary
  columns: Mapping[str, str]  # column → metric
  arms: tuple[Arm, ...]
  sizes: str  # what the paper's numbers belong to
  checkpoints: int = 1  # scored of each run, evenly spaced
  scaling: bool = False  # arms are named as `sibling_tables.scaling_arm` does


def _weighed(weight: float, **published: float) -> Arm:
  return Arm(
    f"lambda_{weight:g}",
    f"Unified, λ = {weight:g}",
    f"lambda={weight:g}",
    published=published,
  )


TABLES: Mapping[str, Table] = {
  "table1": Table(
    "Unified training against text-to-image alone",
    ("FID", "GenEval"),
    (
      Arm("t2i_only", "T2I only", "t2i_only", metrics=_DRAWS,
          published={"FID": 7.88, "GenEval": 0.59}),
      Arm("unified", "Unified",
          published={"FID": 7.20, "GenEval": 0.59}),
    ),
    "2B", "configs/unified_2b.py",
  ),
  "table2": Table(
    "The backbone's generation",
    ("FID", "GenEval"),
    (
      Arm("gemma1", "Gemma-1",
          flags=("--config.model.decoder.preset=gemma1_2b",),
          published={"FID": 9.73, "GenEval": 0.52}),
      Arm("unified", "Gemma-2",
          published={"FID": 7.20, "GenEval": 0.59}),
    ),
    "2B", "configs/unified_2b.py",
  ),
  "table3": Table(
    "Weight of the text loss",
    ("FID", "CIDEr", "QA"),
    (
      Arm("i2t_only", "I2T only", "i2t_only", metrics=_READS,
          published={"CIDEr": 125.05, "QA": 65.95}),
      _weighed(2.0, FID=54.02, CIDEr=125.80, QA=65.88),
      _weighed(1.0, FID=47.89, CIDEr=126.25, QA=65.64),
      _weighed(0.2, FID=28.60, CIDEr=123.65, QA=65.17),
      _weighed(0.1, FID=17.90, CIDEr=121.68, QA=61.87),
      _weighed(0.05, FID=12.48, CIDEr=121.18, QA=61.48),
      _weighed(0.01, FID=9.65, CIDEr=120.25, QA=61.37),
      _weighed(0.005, FID=8.39, CIDEr=120.25, QA=60.29),
    ),
    "0.7B; Cap Avg and QA Avg of the transfers", "configs/unified_700m.py",
    ("FID", COCO_CIDER),
  ),
  "table4": Table(
    "Order of the image tokens in training",
    ("FID", "GenEval", "CIDEr"),
    (
      Arm("raster", "Raster order", "raster",
          published={"FID": 8.28, "GenEval": 0.59, "CIDEr": 45.57,
                     COCO_CIDER: 45.57}),
      Arm("unified", "Random, annealed to raster",
          published={"FID": 7.20, "GenEval": 0.59, "CIDEr": 40.91,
                     COCO_CIDER: 40.91}),
    ),
    "2B", "configs/unified_2b.py", ("FID", "GenEval", COCO_CIDER),
  ),
}  # fmt: skip


def on_coco(table: Table, own: bool) -> Table:
  """The same runs, judged on COCO: the evaluation job captions, no more.

  Args:
    table: one of TABLES.
    own: arms are the paper's models, not variations of a given one.
  """

  def on(arm):
    if own and arm.name == "gemma1":
      arm = arm._replace(config="configs/unified_2b_gemma1.py", flags=())
    reads = "captions" in arm.metrics and COCO_CIDER in table.coco
    return arm._replace(metrics=("captions",) if reads else ())

  arms, sizes = tuple(map(on, table.arms)), table.sizes.partition(";")[0]
  return table._replace(arms=arms, columns=table.coco, sizes=sizes)


def scores(workdir: str, step: int) -> dict[str, float]:
  """A run's figures by column, of one step; later rows replace earlier ones.

  A figure that was not measured is missing.
  """
  found = {name: row["value"] for name, row in _rows(workdir, step).items()}
  return {c: found[m] for c, m in COLUMNS.items() if m in found}


def coco_scores(workdir: str, step: int) -> dict[str, tuple[float, str]]:
  """`scores` on COCO with what each rests on; CIDEr times 100, as in print.

  Raises:
    ValueError: a file is of another run or step.
  """
  out = {}
  now = {"step": step, "workdir": home(workdir)}
  for column, (name, _) in COCO_FILES.items():
    path = epath.Path(workdir) / name
    if not path.exists():
      continue
    found = json.loads(path.read_text())
    by = {key: found["made_by"].get(key) for key in now}
    if by != now:
      raise ValueError(
        f"{path} is of other images: {'; '.join(changed(by, now))}. Write it "
        "anew, or move it away"
      )
    if column == "FID":
      made, real = found["generated"], found["reference"]
      basis = f"{made['count']} drawn, {found['convention']}, {real['kind']}"
      out[column] = found["fid"], f"{basis} ({real['count']})"
    else:
      basis = f"{found['images']} drawn, {found['prompts']} prompts"
      basis += f", {found['detector']}"
      out[column] = found["scores"]["overall"], basis
  row = _rows(workdir, step).get(COLUMNS["CIDEr"])
  if row:
    basis = ", ".join(f"{k} {v}" for k, v in row["settings"].items())
    out[COCO_CIDER] = 100 * row["value"], basis
  return out


def basis(runs: Mapping[str, str], step: int) -> list[str]:
  """What runs were trained on, as lines below their table.

  Args:
    runs: workdir by title.
    step: of their checkpoints, which say it.
  """
  titles: dict[str, list[str]] = {}
  known = {workdir: _basis(workdir, step) for workdir in set(runs.values())}
  for title, workdir in runs.items():
    titles.setdefault(known[workdir], []).append(title)
  if len(titles) == 1:
    return [f"Ours: {text}." for text in titles]
  return [f"{'; '.join(those)}: {text}." for text, those in titles.items()]


def _basis(workdir: str, step: int) -> str:
  try:
    meta = checkpoint.read_meta(workdir, step)
  except checkpoint.CheckpointError:
    return "not known, as the checkpoint is gone"
  config = meta["config"]
  data, world = config["data"], config["data"]["world"]
  what = ", ".join(source["path"] for source in data["train"].values())
  if "train" in world:
    what = f"embedded world, {world['train']} scenes, seed {world['seed']}"
  tokenizer = config["text"]["tokenizer"]
  digest = meta.get("tokenizer_sha256", "")[:8] or "digest not known"
  codec = (meta.get("identity") or {}).get("codec") or {}
  weights = codec.get("weights", "")[:8] or "not known"
  return (
    f"{what}, in {data['root']}; tokenizer {tokenizer} ({digest}); "
    f"codec {weights}; {step} steps, seed {config['seed']}"
  )


def _rows(workdir: str, step: int) -> dict[str, dict]:
  """The evaluation job's last row with a value of each metric."""
  rows = run_results.read(workdir)
  return {r["metric"]: r for r in rows if r["step"] == step and "value" in r}


def render(
  table: Table,
  results: Sequence[Mapping[str, float]],
  notes: Sequence[str] = (),
) -> str:
  """The table in Markdown: ours, and the paper's number in brackets.

  Args:
    table: one of TABLES.
    results: `scores` of its arms, in their order.
    notes: lines below it.
  """
  head = [table.title, *table.columns]
  lines = [" | ".join(head), " | ".join(["---"] * len(head))]
  for arm, found in zip(table.arms, results, strict=True):
    cells = [
      f"{number(found.get(c))} [{number(arm.published.get(c))}]"
      for c in table.columns
    ]
    lines.append(" | ".join([arm.title, *cells]))
  lines = [f"| {line} |" for line in lines]
  note = f"In brackets the paper's, on its own data ({table.sizes})."
  return "\n".join([*lines, "", note, *notes, ""])


def number(value: float | None) -> str:
  """As tables and figures print it."""
  return (
    "–" if value is None else f"{value:.3g}" if value < 10 else f"{value:.1f}"
  )
