"""The paper's controlled experiments, a command each.

  python -m unifluid_jax.experiments table3 --budget=600

table1: unified against text-to-image alone; table2: Gemma-1 against Gemma-2;
table3: weight of the text loss, with figure 3; table4: raster against random
order. Each run trains for --budget steps (default: the configuration's own)
and is scored once; tables share runs. The same command goes on where it was
interrupted. Needs the data and autoencoder that `make demo` makes first.

  python -m unifluid_jax.experiments table1 --world=coco

runs the paper's models (configs/unified_700m.py for table 3, else
unified_2b.py and unified_2b_gemma1.py; --config=FILE: variations of that one).
CIDEr of COCO captions comes from the evaluation job, FID and GenEval from
coco_fid.json and geneval.json in each run's workdir; where one is missing, the
command is shown that writes it. Runs that a pod has trained are only scored.

  python -m unifluid_jax.experiments liquid1 --budget=600 --seeds=3

liquid1: more data of either kind; liquid_scaling: sizes on texts, images and
both, with power laws and a picture of samples; liquid6: longer training, and a
tokenizer that is aligned with captions, which it trains itself; liquid10:
guidance; unitoken5: continuous features; unitoken6: shares of data;
unitoken_reading: small words, with and without the grid, the encoder tuned or
frozen. These vary configs/liquid_shapes.py and configs/unitoken_shapes.py, and
need the image tokenizer that `make demo-liquid` or `make demo-unitoken` trains
first; unitoken_reading also the signs that `prepare` and `encode` make with
--config=configs/unitoken_shapes.py:reading.

vargpt4: stages left out, parts frozen in stage 3; vargpt5: parts frozen in
stage 2, sets left out or added; vargpt_shared: one network or two, what slots
see, what guidance leads away from. These vary configs/vargpt_shapes.py, and
need the image tokenizer that `make demo-vargpt` trains first. --budget is of
stage 3: other stages, and runs from scratch, take as much more or less as in
the demo.

heads: kinds of heads by their steps; passes: order of cells by passes. These
vary configs/shapes.py, with sixteen tokens an image. emoji_heads: heads on
emoji, varying configs/emoji.py; needs what `make emoji` makes first.
"""

import json
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath
from ml_collections import config_flags

from unifluid_jax import studies
from unifluid_jax.core import checkpoint, cli, files, freeze, interrupt
from unifluid_jax.evals.published import (
  paper_tables,
  sibling_tables,
  weight_figure,
)
from unifluid_jax.evals.published.paper_tables import Arm, Table

_CONFIG = cli.define_config(
  "configs/shapes.py", "Configuration that the runs vary.", whole=True
)
_WORLD = flags.DEFINE_enum(
  "world", "shapes", ["shapes", "coco"], "What the runs are judged on."
)
_ROOT = flags.DEFINE_string("root", "runs/experiments", "Where runs are kept.")
_VARIED = "varied.json"  # in the folder of runs: name → what it varies
# Of a configuration, what neither trains nor scores in another way.
_FREE = ("name", "log.", "checkpoint.", "mesh.", "eval.batch", "eval.poll")
_ORDER = ("random_until", "raster_from")  # keys of config.loss
_BUDGET = flags.DEFINE_integer(
  "budget", None,
  "Steps of each run; its order schedule shrinks along. Default: the "
  "configuration's.",
)  # fmt: skip
_SEEDS = flags.DEFINE_integer(
  "seeds", 1, "Runs of each arm, with intervals; not of table1 to table4."
)

Call = Callable[[Sequence[str]], None]


def main(argv: list[str]) -> None:
  """Runs what is missing of one table, then prints it."""
  name = argv[1] if len(argv) > 1 else ""
  if name in sibling_tables.STUDIES:
    return _study(name)
  if name not in paper_tables.TABLES:
    known = ", ".join((*paper_tables.TABLES, *sibling_tables.STUDIES))
    raise ValueError(f"experiment {name!r}: choose one of {known}")
  if _SEEDS.value != 1:
    raise ValueError(f"--seeds={_SEEDS.value}: {name} is of one seed")
  table, coco = paper_tables.TABLES[name], _WORLD.value == "coco"
  flag, steps = flags.FLAGS["config"], _BUDGET.value
  if coco:
    table = paper_tables.on_coco(table, own=not flag.present)
    if not flag.present:
      flag.parse(table.config)
  file, tree = config_flags.get_config_filename(flag), _CONFIG.value
  steps = tree.steps if steps is None else steps
  if steps < 1:
    raise ValueError(f"--budget={steps}: at least 1 step")
  order = {k: tree.loss[k] * steps // tree.steps for k in _ORDER}
  say, root = cli.speaker(), epath.Path(_ROOT.value) / f"steps_{steps}"
  claim(root, [arm.name for arm in table.arms], file, tree.to_dict())
  results, notes = [], set()
  for i, arm in enumerate(table.arms, 1):
    say(f"{name}: run {i} of {len(table.arms)}: {arm.title}")
    run(arm, file, str(root), steps, order, call)
    results.append(paper_tables.scores(str(root / arm.name), steps))
    if coco:
      found = paper_tables.coco_scores(str(root / arm.name), steps)
      results[-1] = {column: value for column, (value, _) in found.items()}
      notes |= {f"{column}: {basis}." for column, (_, basis) in found.items()}
      for line in missing(table, arm, str(root / arm.name), found):
        say(line)
  runs = {arm.title: str(root / arm.name) for arm in table.arms}
  below = [*paper_tables.basis(runs, steps), *sorted(notes)]
  below += [] if coco else [paper_tables.WORLD_NOTE]
  text = paper_tables.render(table, results, below)
  files.write(root / f"{name}.md", text)
  say(f"{text}{root / name}.md")
  if name == "table3":
    swept = [(a, r) for a, r in zip(table.arms, results, strict=True)
             if a.argument.startswith("lambda=")]  # fmt: skip
    weights = [float(a.argument.removeprefix("lambda=")) for a, _ in swept]
    figure = weight_figure.render(weights, [r for _, r in swept])
    if figure:
      files.write(root / "figure3.svg", figure)
    say(f"{root}/figure3.svg" if figure else "no figure yet: score two runs")


def _study(name: str) -> None:
  """Runs what is missing of Liquid's or UniToken's experiment, and prints it.

  Raises:
    ValueError: flags that do not go with it.
  """
  study, flag = sibling_tables.STUDIES[name], flags.FLAGS["config"]
  if _WORLD.value != "shapes":
    raise ValueError(
      f"--world={_WORLD.value}: {name} has a world of its own, leave it out"
    )
  if _SEEDS.value < 1:
    raise ValueError(f"--seeds={_SEEDS.value}: at least 1")
  if not flag.present:
    flag.parse(study.config)
  file, steps = config_flags.get_config_filename(flag), _BUDGET.value
  steps = _CONFIG.value.steps if steps is None else steps
  if steps < 1:
    raise ValueError(f"--budget={steps}: at least 1 step")
  root = epath.Path(_ROOT.value) / f"steps_{steps}"
  claim(root, [a.name for a in study.arms], file, _CONFIG.value.to_dict())
  say = cli.speaker()
  text = studies.carry_out(
    name, study, _SEEDS.value, str(root), steps, file, call, say
  )
  say(f"{text}{root / name}.md")


def claim(
  root: epath.Path, names: Sequence[str], file: str, tree: Mapping[str, Any]
) -> None:
  """Notes which configuration runs vary; refuses to take those of another.

  Runs are known by their names alone, and what is scored is not run again:
  another --config would be answered with the scores of the one before it.

  Args:
    root: folder of all runs.
    names: of the runs.
    file: of the configuration.
    tree: what it says.

  Raises:
    ValueError: runs of these names vary another one.
  """
  leaves = {
    key: str(value)
    for key, value in freeze.leaves(tree).items()
    if not key.startswith(_FREE)
  }
  digest = files.digest(json.dumps(leaves, sort_keys=True).encode())[:12]
  path = root / _VARIED
  varied = json.loads(path.read_text()) if path.exists() else {}
  there = {f.name for f in root.iterdir()} if root.exists() else set()
  for name in names:
    old, was = varied.get(name, (file, digest))
    begun = any(n == name or n.startswith(f"{name}_seed") for n in there)
    if was != digest and begun:
      raise ValueError(
        f"{root}/{name} varies {old}"
        + (" as it was before" if old == file else f", not {file}")
        + ": choose another --root"
      )
  varied |= dict.fromkeys(names, (file, digest))
  files.write(path, json.dumps(varied, indent=2) + "\n")


def run(
  arm: Arm,
  config: str,
  root: str,
  steps: int,
  order: Mapping[str, int],
  call: Call,
) -> None:
  """Trains and scores one arm, unless its scores are there already.

  Args:
    arm: which.
    config: file that it varies.
    root: folder of all arms' workdirs.
    steps: to train for.
    order: keys of config.loss, shrunk to so many steps.
    call: runs a module of this package with arguments.
  """
  workdir = f"{root}/{arm.name}"
  wanted = {
    column
    for column, metric in paper_tables.COLUMNS.items()
    if metric.split("/")[0] in arm.metrics
  }
  there = set(paper_tables.scores(workdir, steps))
  flags_of_arm = arguments(arm, config, steps, order)
  if not there and steps not in checkpoint.steps(workdir):
    call(["main", f"--workdir={workdir}", *flags_of_arm])
  if not wanted <= there:
    call(["evaluate", f"--workdir={workdir}", f"--step={steps}", *flags_of_arm])


def arguments(
  arm: Arm, config: str, steps: int, order: Mapping[str, int]
) -> list[str]:
  """Flags that both the training and the scoring of an arm take."""
  out = [
    f"--config={studies.varied(arm.config or config, arm.argument)}",
    f"--config.steps={steps}",
    f"--config.checkpoint.every={steps}",
    f"--config.eval.metrics={arm.metrics!r}",
  ]
  if arm.argument != "raster":
    out += [f"--config.loss.{k}={v}" for k, v in order.items()]
  return [*out, *arm.flags]


def missing(
  table: Table, arm: Arm, workdir: str, found: Container[str]
) -> list[str]:
  """How to find what the evaluation job does not; --help has their flags."""
  return [
    f"{column} of {arm.title} is missing: python -m unifluid_jax.evaluate "
    f"--metrics={', then '.join(metrics)} --out={workdir}/{file}"
    for column, (file, metrics) in paper_tables.COCO_FILES.items()
    if column in table.columns and column in arm.published
    if column not in found
  ]


def call(command: Sequence[str]) -> None:
  """Runs `python -m unifluid_jax.…`, its output on this terminal.

  Raises:
    ValueError: it failed; its own message stands above.
  """
  module, *rest = command
  status = interrupt.call(
    [sys.executable, "-m", f"unifluid_jax.{module}", *rest]
  )
  if status:
    raise ValueError(
      f"unifluid_jax.{module} {' '.join(rest)} ended with status {status}, "
      "see above; the same command goes on from there"
    )


if __name__ == "__main__":
  cli.run(main, positional=1)
