"""Best of n: a model's own right drawings, as a data set to train on.

Rejection sampling as language models are fine-tuned by it (Llama 2, arXiv
2307.09288 §3.2.3; RAFT, arXiv 2304.06767): draw several images of each prompt,
keep the best, where they are right, and train on them as on any others.
"""

import ast
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from unifluid_jax import arguments, systems
from unifluid_jax.core.config import Config
from unifluid_jax.data import tasks
from unifluid_jax.data.images import encode_image
from unifluid_jax.evals.rewards import Asked, Reward
from unifluid_jax.stages import Stage

SOURCE = "rewarded"  # the key of data.train that a round's drawings have

_AT_ONCE = 1024  # images in memory
_SEEDS = 2**31
# Guesses on two CPU cores: an image drawn and judged; a step; starting.
_IMAGE_SECONDS, _STEP_SECONDS, _START = 0.01, 0.22, 20.0

# Prompts and their seeds → u8[n, H, W, 3].
Images = Callable[[Sequence[str], Sequence[int]], Any]


class Drawn(NamedTuple):
  """A prompt's images."""

  asked: Asked
  images: UInt8[np.ndarray, "n H W 3"]
  rewards: Float[np.ndarray, "n"]

  def best(self, most: int, least: float) -> list[int]:
    """Its best images, the first drawn first among equals."""
    order = np.argsort(-self.rewards, kind="stable")[:most]
    return [int(i) for i in order if self.rewards[i] >= least]


def drawings(
  images: Images, reward: Reward, prompts: int, draws: int, seed: int
) -> Iterator[Drawn]:
  """Several judged images of each prompt.

  Args:
    images: draws, see `bench.Subject`.
    reward: asks and judges.
    prompts: how many.
    draws: images of each.
    seed: of the prompts and of all images.
  """
  rng = np.random.default_rng(seed)
  asked = reward.prompts(prompts, rng)
  seeds = rng.integers(_SEEDS, size=(len(asked), draws))
  step = max(1, _AT_ONCE // draws)
  for start in range(0, len(asked), step):
    part = asked[start : start + step]
    repeated = [task for task in part for _ in range(draws)]
    found = images(
      [task["prompt"] for task in repeated],
      seeds[start : start + step].reshape(-1).tolist(),
    )
    judged = np.asarray(reward.judge(repeated, found), np.float32)
    shape = len(part), draws
    yield from map(
      Drawn, part, found.reshape(*shape, *found.shape[1:]),
      judged.reshape(shape),
    )  # fmt: skip


def write(
  folder: pathlib.Path, found: Iterator[Drawn], keep: int, least: float,
  kind_of: Callable[[Asked], str],
) -> list[str]:  # fmt: skip
  """The best of each prompt as an imagefolder with its texts and rewards.

  Args:
    folder: empty.
    found: what was drawn.
    keep: images of a prompt at most.
    least: reward that an image needs.
    kind_of: as `Reward.kind`.

  Returns:
    Lines that say how many are right, of each kind.

  Raises:
    ValueError: none is.
  """
  rows, judged = [], {}
  for number, each in enumerate(found):
    judged.setdefault(kind_of(each.asked), []).append(each.rewards >= least)
    for place in each.best(keep, least):
      name = f"{number:06d}_{place:03d}.png"
      (folder / name).write_bytes(encode_image(each.images[place]))
      reward = float(each.rewards[place])
      rows.append(
        {"file_name": name, "text": each.asked["prompt"], "reward": reward}
      )
  if not rows:
    raise ValueError(
      f"none of the drawings is rewarded {least:g}: draw more of each prompt, "
      "or begin from a run that draws better"
    )
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
  return [*_shares(judged), f"kept {len(rows)} images"]


def _shares(judged: dict[str, Sequence[np.ndarray]]) -> Iterator[str]:
  for kind, rights in judged.items():
    right = np.stack(rights)
    yield (
      f"{kind:<14} {right.mean():.3f} of images right, "
      f"{right.any(axis=1).mean():.3f} of {len(right)} prompts have one"
    )


def sampling_of(config: Config, changes: Sequence[str]) -> Any:
  """A run's sampling options with OPTION=VALUE changes.

  Raises:
    ValueError: no such option, or a value out of its range.
  """
  spec, found = systems.spec(config.system), {}
  for change in changes:
    name, equals, value = change.partition("=")
    if not equals:
      raise ValueError(f"--sampling={change}: write OPTION=VALUE, as in cfg=1")
    try:
      found[name] = ast.literal_eval(value)
    except (SyntaxError, ValueError):
      found[name] = value
    # Anything else is refused below, by name.
    whole = isinstance(found[name], int) and not isinstance(found[name], bool)
    if whole and isinstance(getattr(config.sampling, name, None), float):
      found[name] = float(found[name])
  arguments.check_sampling(found, spec.sampling, spec.ranges)
  found = {k: v for k, v in found.items() if v is not None}
  sampling = dataclasses.replace(config.sampling, **found)
  spec.check_sampling(config, sampling, tasks.T2I)
  return sampling


def recipe(
  workdir: str, step: int, state: str, **options: Any
) -> dict[str, Any]:
  """All that determines what is kept, as `shapes_builder.write_once` has it.

  `state` tells the weights: another run may have taken the place of one, and
  saved the same step.
  """
  return {
    "version": "1.1.0", "workdir": workdir, "step": step, "state": state,
    **options,
  }  # fmt: skip


def rounds(
  config: str, start: str, workdir: str, steps: int, *, count: int,
  prompts: int, draws: int, least: float, seed: int,
  sampling: Sequence[str] = (),
) -> list[Stage]:  # fmt: skip
  """The commands of all rounds, then the evaluation of the last.

  Args:
    config: as for --config.
    start: workdir of the run that draws first.
    workdir: of all rounds, a whole path, as sources are below data.root.
    steps: that a round trains.
    count: of rounds.
    prompts: of each round.
    draws: images of each prompt.
    least: reward that an image needs.
    seed: of all drawings; no two rounds of any two seeds share one.
    sampling: how images are drawn, OPTION=VALUE.
  """
  out, before = [], start
  for number in range(1, count + 1):
    drawn, here = f"{workdir}/drawn_{number}", workdir_of(workdir, number)
    draw = [
      "best_of", f"--workdir={before}", f"--to={drawn}", f"--prompts={prompts}",
      f"--draws={draws}", f"--least={least:g}",
      f"--seed={seed * count + number}",
      *(f"--sampling={change}" for change in sampling),
    ]  # fmt: skip
    run_flags = [
      f"--config={config}",
      f"--config.data.train.{SOURCE}.path={drawn}",
      f"--config.data.train.{SOURCE}.moments={drawn}_encoded",
      f"--config.init.all={before}",
    ]
    train = ["main", *run_flags, f"--workdir={here}"]
    title = f"round {number} of {count}"
    drawing, training = _IMAGE_SECONDS * prompts * draws, _STEP_SECONDS * steps
    out += [
      Stage(f"{title}: drawing", draw, _START + drawing),
      Stage(f"{title}: encoding", ["encode", *run_flags], _START),
      Stage(f"{title}: training", train, _START + training, compiles=True),
    ]
    before = here
  score = ["evaluate", *run_flags, f"--workdir={before}", "--once"]
  return [*out, Stage("evaluation", score, 2 * _START)]


def workdir_of(workdir: str, number: int) -> str:
  """Of a round, counted from 1."""
  return f"{workdir}/round_{number}"
