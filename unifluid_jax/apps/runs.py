"""The runs that the app serves, and what each of them can do."""

import dataclasses
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from unifluid_jax import api, boxed, exported, systems
from unifluid_jax.core import checkpoint
from unifluid_jax.core.types import Answerer
from unifluid_jax.data import tasks
from unifluid_jax.evals.report import samples

MOST_RUNS = 6
_EXAMPLES = 6
_STEPS = (10, 25, 50, 100)  # of diffusion heads, beside the run's own
_GUIDANCE = (0.0, 10.0, 0.5)  # smallest, largest, step: few programs compile


@dataclasses.dataclass(frozen=True)
class Example:
  """A prompt with the seed that an evaluation drew it with."""

  prompt: str
  seed: int


@dataclasses.dataclass(frozen=True)
class Run:
  """A loaded model, used by one request at a time.

  Attributes:
    name: what people choose it by.
    model: an `api.Model`.
    examples: prompts of its evaluations.
    questions: of its evaluations.
    lock: held while the model computes.
  """

  name: str
  model: Any
  examples: tuple[Example, ...] = ()
  questions: tuple[str, ...] = ()
  lock: Any = dataclasses.field(default_factory=threading.Lock)

  @property
  def config(self) -> Any:
    """The run's configuration."""
    return self.model.config

  @property
  def spec(self) -> Any:
    """What its system declares."""
    return systems.spec(self.config.system)

  @property
  def answers(self) -> bool:
    """Whether it was trained to answer questions about images."""
    return bool(self.config.batch.get(tasks.I2T)) and self._is(Answerer)

  @property
  def edits(self) -> bool:
    """Whether it was trained with edits."""
    return bool(self.config.batch.get(tasks.EDIT))

  @property
  def draws(self) -> bool:
    """Whether it was trained to draw prompts."""
    return bool(self.config.batch.get(tasks.T2I))

  @property
  def redraws(self) -> bool:
    """Whether it can draw cells of an image again."""
    return self.draws and self.model.drawings.grid is not None

  @property
  def stages(self) -> bool:
    """Whether it shows its images while they appear."""
    return self.model.drawings.shows_stages

  @property
  def drawable(self) -> str:
    """A prompt that it can draw: any word, or one of its classes."""
    return next(iter(getattr(self.config.model, "names", ())), "warm")

  @property
  def guides(self) -> bool:
    """Whether its guidance can be chosen."""
    return self._allows(cfg=2.0)

  @property
  def steps(self) -> tuple[int, ...]:
    """Numbers of steps to choose among; none where it has no such option."""
    own = getattr(self.config.sampling, "steps", None)
    if own is None:
      return ()
    return tuple(n for n in sorted({own, *_STEPS}) if self._allows(steps=n))

  def settings(
    self, guidance: float | None, steps: int | None
  ) -> dict[str, Any]:
    """Sampling options as the controls give them; those it lacks are left out.

    The run's own guidance need not be one that the slider stops at.

    Raises:
      ValueError: values that the controls do not offer.
    """
    found = {}
    own = getattr(self.config.sampling, "cfg", None)
    if guidance not in (None, own) and self.guides:
      low, high, step = _GUIDANCE
      if not low <= guidance <= high:
        raise ValueError(f"guidance is from {low:g} to {high:g}")
      found["cfg"] = round(guidance / step) * step
    if steps is not None and self.steps:
      if steps not in self.steps:
        raise ValueError(f"steps are one of {', '.join(map(str, self.steps))}")
      found["steps"] = int(steps)
    return found

  def sampling(self, options: dict[str, Any]) -> Any:
    """The run's sampling options with some changed."""
    return dataclasses.replace(self.config.sampling, **options)

  def _is(self, contract: type) -> bool:
    return isinstance(systems.build(self.config), contract)

  def _allows(self, **options: Any) -> bool:
    known = {field.name for field in dataclasses.fields(self.config.sampling)}
    if not known.issuperset(options):
      return False
    try:
      self.spec.check_sampling(self.config, self.sampling(options), tasks.T2I)
    except ValueError:
      return False
    return True


# ------------------------------------------------------------------- opening


def parse(name: str) -> tuple[str, int | None]:
  """RUN or RUN@STEP → workdir and checkpoint."""
  found = re.fullmatch(r"(.+)@(\d+)", name)
  return (found[1], int(found[2])) if found else (name, None)


def names(given: Sequence[str]) -> list[str]:
  """What runs are called: the shortest ends of their paths that differ.

  Raises:
    ValueError: none, too many, or the same twice.
  """
  given = [name.strip().rstrip("/") for name in given if name.strip()]
  if not given:
    raise ValueError("--workdir is missing: name a trained run")
  if len(given) > MOST_RUNS:
    raise ValueError(f"--workdir: at most {MOST_RUNS} runs, not {len(given)}")
  if len(set(given)) < len(given):
    raise ValueError(f"--workdir={','.join(given)}: name each run once")
  parts = [PurePath(name).parts for name in given]
  for depth in range(1, max(map(len, parts)) + 1):
    found = ["/".join(part[-depth:]) for part in parts]
    if len(set(found)) == len(found):
      return found
  return given


def load(given: Sequence[str], say: Callable[[str], None]) -> list[Run]:
  """Loads the runs and models that --workdir names; all are checked first.

  Raises:
    ValueError: no list of runs.
    checkpoint.CheckpointError: nothing usable in one of them.
  """
  called = names(given)
  places = [parse(x.strip().rstrip("/")) for x in given if x.strip()]
  for workdir, step in places:
    api.spec_of(workdir, step)
  return [
    _load(name, workdir, step, say)
    for name, (workdir, step) in zip(called, places, strict=True)
  ]


def _load(
  name: str, workdir: str, step: int | None, say: Callable[[str], None]
) -> Run:
  workdir, begun = boxed.located(workdir), time.monotonic()
  what = "exported model"
  if not exported.is_exported(workdir):
    step = checkpoint.latest_step(workdir) if step is None else step
    what = f"step {step}"
  model = api.load(workdir, step=step)
  say(f"{name}: {what}, loaded in {time.monotonic() - begun:.1f} s")
  return Run(name, model, *shown_examples(workdir))


def shown_examples(
  workdir: str,
) -> tuple[tuple[Example, ...], tuple[str, ...]]:
  """Prompts and questions of the newest evaluation that kept its examples."""
  kept = samples.steps(workdir)
  found = samples.read(workdir, kept[-1]) if kept else []
  drawn = {x.prompt: x.seed or 0 for x in found if x.kind == "generated"}
  asked = dict.fromkeys(x.prompt for x in found if x.kind == "answer")
  examples = [Example(*pair) for pair in drawn.items()]
  return tuple(examples[:_EXAMPLES]), tuple(asked)[:_EXAMPLES]


def warm(run: Run, say: Callable[[str], None]) -> None:
  """Compiles what the tabs need, or reads it from the compilation cache.

  One image per request: other numbers of rows would be other programs.
  """
  size = run.config.model.image_size
  blank = np.full((size, size, 3), 128, np.uint8)
  todo: dict[str, Callable[[], Any]] = {}
  if run.draws:
    todo["draw"] = lambda: drawn(run, run.drawable, 0, {})
  if run.redraws:
    again = np.zeros(run.model.drawings.grid, bool)
    again[-1, -1] = True
    todo["redraw"] = lambda: run.model.generate(
      run.drawable, given=blank, redraw=again
    )
  if run.answers:
    todo["ask"] = lambda: run.model.caption(blank)
  if run.edits:
    todo["edit"] = lambda: run.model.edit(blank, "warm")
  for what, call in todo.items():
    begun = time.monotonic()
    with run.lock:
      call()
    say(f"{run.name}: {what} ready in {time.monotonic() - begun:.1f} s")


def drawn(
  run: Run, prompt: str, seed: int, options: dict[str, Any]
) -> list[Image.Image]:
  """An image while it appears, the last whole; one where none can be shown.

  All tabs draw so, that one program serves them. The caller holds the lock.
  """
  if run.stages:
    return run.model.stages(prompt, seed, **options)
  return [run.model.generate(prompt, seed, **options)]
