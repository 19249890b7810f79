"""Runs the experiments of `evals/published/sibling_tables.py` over seeds.

Every run has a workdir of its own; what is trained and scored already is not
done again, so that the same command goes on where it was interrupted.
"""

from collections.abc import Callable, Sequence

from unifluid_jax import systems
from unifluid_jax.core import checkpoint, files, telemetry
from unifluid_jax.data.images import encode_image
from unifluid_jax.evals.published import (
  paper_tables,
  scaling_figure,
  scaling_tables,
  study_results,
)
from unifluid_jax.evals.published.paper_tables import Arm, Study
from unifluid_jax.evals.published.sibling_tables import (
  DATA,
  WIDTHS,
  scaling_arm,
)
from unifluid_jax.evals.report import samples

Call = Callable[[Sequence[str]], None]


def workdir(root: str, name: str, seed: int) -> str:
  """Of the run of an arm's name and a seed."""
  return f"{root}/{name}_seed{seed}"


def varied(config: str, argument: str) -> str:
  """A configuration file with an arm's argument, behind those it has."""
  if not argument:
    return config
  return f"{config}{',' if ':' in config else ':'}{argument}"


def length(arm: Arm, budget: int) -> int:
  """Steps of an arm's runs."""
  return max(1, round(budget * arm.share))


def saved_steps(study: Study, arm: Arm, budget: int) -> list[int]:
  """Steps of the checkpoints that an arm's runs save; the last is whole."""
  steps = length(arm, budget)
  every = -(-steps // study.checkpoints)
  return sorted({*range(every, steps, every), steps})


def arguments(
  study: Study, arm: Arm, seed: int, root: str, budget: int, config: str = ""
) -> list[str]:
  """Flags that both the training and the scoring of a run take.

  Args:
    study: of the arm.
    arm: what differs from the configuration.
    seed: of the run.
    root: folder of all workdirs.
    budget: steps of an arm whose share is 1.
    config: file that arms vary which name none; default the study's.
  """
  saved = saved_steps(study, arm, budget)
  file = varied(arm.config or config or study.config, arm.argument)
  out = [
    f"--config={file}",
    f"--config.steps={saved[-1]}",
    f"--config.checkpoint.every={saved[0]}",
    f"--config.checkpoint.keep={study.checkpoints}",
    f"--config.seed={seed}",
    f"--config.eval.metrics={arm.metrics!r}",
    *arm.flags,
  ]
  whole = {"all": arm.follows} if arm.follows else {}
  for prefix, source in {**whole, **arm.starts}.items():
    name, mark, part = source.partition("#")
    start = f"{workdir(root, name, seed)}{mark}{part}"
    out.append(f"--config.init.{prefix}={start}")
  return out


def run(
  study: Study,
  arm: Arm,
  seed: int,
  root: str,
  budget: int,
  config: str,
  call: Call,
) -> None:
  """Trains one run and scores its checkpoints, unless that was done.

  Args:
    study: of the arm.
    arm: which; what it `follows` and `starts` from has been run.
    seed: of the run.
    root: folder of all workdirs.
    budget: steps of an arm whose share is 1.
    config: file that the arms vary; default the study's.
    call: runs a module of this package with arguments.
  """
  own, steps = workdir(root, arm.name, seed), length(arm, budget)
  wanted = study_results.wanted(study, arm)
  flags = arguments(study, arm, seed, root, budget, config)

  def scored():
    there = study_results.scores(own, study, arm)
    return {step for step, found in there.items() if wanted <= set(found)}

  # A run that is scored may have lost its checkpoints since.
  known = steps in scored() if wanted else False
  if not known and steps not in checkpoint.steps(own):
    if arm.codec:
      _make_codec(arm.codec, flags, call)
    call(["main", f"--workdir={own}", *flags])
  if not wanted:
    return
  for step in sorted(set(checkpoint.steps(own)) - scored()):
    call(["evaluate", f"--workdir={own}", f"--step={step}", *flags])


def _make_codec(codec: tuple[str, str], flags: list[str], call: Call) -> None:
  """Trains an arm's image tokenizer and encodes with it, where that is missing.

  Args:
    codec: configuration and workdir of the tokenizer.
    flags: of the arm; they name the workdir and a cache of its own.
    call: runs a module of this package with arguments.
  """
  config, workdir = codec
  call(["main", f"--workdir={workdir}", f"--config={config}"])
  call(["encode", *flags])


def carry_out(
  name: str,
  study: Study,
  seeds: int,
  root: str,
  budget: int,
  config: str,
  call: Call,
  say: Callable[[str], None],
) -> str:
  """Does what is missing of a study; writes its files.

  Args:
    name: of the study, and of its files in `root`.
    study: which.
    seeds: how many runs of each arm, seeds 0, 1, ...
    root: folder of all workdirs.
    budget: steps of an arm whose share is 1.
    config: file that the arms vary; default the study's.
    call: runs a module of this package with arguments.
    say: takes progress lines.

  Returns:
    The tables in Markdown.
  """
  total, done = len(study.arms) * seeds, 0
  # Seed by seed: an interrupted study has whole tables of fewer seeds.
  for seed in range(seeds):
    for arm in study.arms:
      done += 1
      say(f"{name}: run {done} of {total}: {arm.title}, seed {seed}")
      run(study, arm, seed, root, budget, config, call)
  results = [
    [
      study_results.scores(workdir(root, arm.name, seed), study, arm).get(
        length(arm, budget), {}
      )
      for seed in range(seeds)
    ]
    for arm in study.arms
  ]
  notes = [
    f"Ours: {seeds} seeds, mean ± 95 % interval (Student's t); columns are the "
    "embedded world's measures.",
    paper_tables.WORLD_NOTE,
    *_basis(study, root, budget),
  ]
  text = study_results.render(study, results, notes)
  if study.scaling:
    points = scaling_points(study, root, seeds)
    files.write(f"{root}/{name}.csv", scaling_tables.as_csv(points))
    parts = (scaling_tables.fits(points), scaling_tables.gaps(points))
    text = "\n".join([text, *parts, _draw_figure(name, study, root, budget)])
  files.write(f"{root}/{name}.md", text)
  return text


def _basis(study: Study, root: str, budget: int) -> list[str]:
  """What the runs of seed 0 were trained on; lines below the table."""
  titles: dict[int, dict[str, str]] = {}
  for arm in study.arms:
    if arm.metrics:
      own = workdir(root, arm.name, 0)
      titles.setdefault(length(arm, budget), {})[arm.title] = own
  return [
    line
    for steps, runs in titles.items()
    for line in paper_tables.basis(runs, steps)
  ]


def _draw_figure(name: str, study: Study, root: str, budget: int) -> str:
  """Writes the samples of seed 0's mixtures as one picture; says what it is."""
  shown = {}
  for width in WIDTHS:
    arm = scaling_arm(width, "mix")
    own = workdir(root, arm.name, 0)
    for step in saved_steps(study, arm, budget):
      shown[width, step] = samples.read(own, step)
  figure = scaling_figure.grid(shown)
  if figure is None:
    return "No samples that all scored mixtures share: no figure 4.\n"
  files.write(f"{root}/{name}.png", encode_image(figure.picture))
  return (
    f"Figure 4: {name}.png, samples of the mixtures, seed 0: sizes downwards, "
    "checkpoints to the right; in each cell, row by row: "
    f"{'; '.join(figure.prompts)}.\n"
  )


def scaling_points(
  study: Study, root: str, seeds: int
) -> list[scaling_tables.Point]:
  """Every scored checkpoint of the scaling study.

  FLOPs are model FLOPs of the steps so far, as training reports them.
  """
  points = []
  for width in WIDTHS:
    for data in DATA:
      arm = scaling_arm(width, data)
      for seed in range(seeds):
        own = workdir(root, arm.name, seed)
        found = study_results.scores(own, study, arm)
        if not found or not checkpoint.steps(own):
          continue
        tree = checkpoint.read_config(own, max(checkpoint.steps(own)))
        system = systems.build(systems.resolve(tree))
        count = telemetry.count(systems.init_shapes(system))
        points += [
          scaling_tables.Point(
            width, data, seed, step, step * system.cost().flops, count, scores
          )
          for step, scores in found.items()
        ]
  return points
