"""The README.md of an exported model: what it is, what it scores, whose data.

The YAML at the top is what the Hugging Face Hub reads. Everything said comes
from the run: its configuration, its identity, the rows of its evaluation and
the licence files beside its data.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unifluid_jax import systems
from unifluid_jax.core import files
from unifluid_jax.core.config import Config
from unifluid_jax.evals.report import run_results, samples
from unifluid_jax.exported import without_home

LICENSES = "licenses"  # folder of an exported model
# Files about licences and authors, and folders that hold nothing else.
_FILE = re.compile(
  r"(licen[cs]e|notice|attribution|copying|credits)s?([-_. ].*)?", re.I
)
_FOLDER = re.compile(r"licen[cs]es?", re.I)
_TEXT = ("", ".txt", ".md", ".rst", ".html", ".license", ".licence")
_MOST_BYTES = 1 << 20  # of a licence file
_TASKS = {  # config.batch → what the model does, and the Hub's pipelines
  "t2i": ("draws images from prompts", "text-to-image"),
  "i2t": ("describes images and answers questions about them", "image-to-text"),
  "edit": ("edits images as told", "image-to-image"),
  "dialogue": ("goes on in dialogues of texts and images", "any-to-any"),
  "text": ("continues texts", "text-generation"),
}


class Facts(NamedTuple):
  """What a card tells."""

  name: str
  config: Config
  settings: Mapping[str, Any]  # config.json
  scores: list[Mapping[str, Any]]  # of `scores_at`
  prompt: str  # an example
  licenses: list[str]  # names below licenses/
  license: str | None  # of the weights, as the Hub calls it; None: not stated
  parts: Mapping[str, str]  # folder below hf/ → what loads it


def scores_at(workdir: str, step: int) -> list[Mapping[str, Any]]:
  """The last value of each metric at one step, in their order."""
  rows = run_results.read(workdir)
  found = {r["metric"]: r for r in rows if "value" in r and r["step"] == step}
  return list(found.values())


def example_prompt(workdir: str, classes: Sequence[str] = ()) -> str:
  """What the run's newest evaluation drew first.

  Where none did, the first of the classes that it draws, if it draws those.
  """
  for step in reversed(samples.steps(workdir)):
    for sample in samples.read(workdir, step):
      if sample.kind == "generated" and sample.prompt:
        return sample.prompt
  return next(iter(classes), "a prompt")


# ---------------------------------------------------------------- licences


def license_files(config: Config, workdir: str) -> dict[str, Path]:
  """Files about licences and authors in the folders of the training data.

  Looked for in config.data.root, in the folders of its sources and one level
  below each: LICENSE, NOTICE, ATTRIBUTION and the like, and whatever text is
  in a folder called licenses.

  Returns:
    Name below licenses/ → file. Files of the same name are told apart by the
    folder they are in.
  """
  found: dict[str, Path] = {}
  for root in _data_folders(config, workdir):
    for file in _licenses_below(root):
      name = file.name
      if name in found and found[name].read_bytes() != file.read_bytes():
        name = f"{file.parent.name}-{file.name}"
      found.setdefault(name, file)
  return dict(sorted(found.items()))


def copy_licenses(found: Mapping[str, Path], place: Path) -> None:
  """Copies them to the folder of an exported model."""
  for name, file in found.items():
    (place / LICENSES).mkdir(exist_ok=True)
    shutil.copyfile(file, place / LICENSES / name)


def _data_folders(config: Config, workdir: str) -> list[Path]:
  """Local folders with training data; paths may be relative to a parent."""
  root = config.data.root
  if files.is_remote(root) or files.is_remote(workdir):
    return []
  places = [Path(root), *(p / root for p in Path(workdir).resolve().parents)]
  here = next((p for p in places if p.is_dir()), None)
  if here is None:
    return []
  sources = [here / s.path for s in config.data.train.values()]
  return list(dict.fromkeys([here, *(p for p in sources if p.is_dir())]))


def _licenses_below(folder: Path) -> Iterator[Path]:
  with os.scandir(folder) as entries:
    inner = sorted(e.path for e in entries if e.is_dir())
  for place in (folder, *map(Path, inner)):
    wanted = re.compile(".*") if _FOLDER.fullmatch(place.name) else _FILE
    with os.scandir(place) as entries:
      names = sorted(e.name for e in entries if wanted.fullmatch(e.name))
    for file in (place / name for name in names):
      text = file.suffix.lower() in _TEXT and file.is_file()
      if text and file.stat().st_size <= _MOST_BYTES:
        yield file


# -------------------------------------------------------------------- text


def text(facts: Facts) -> str:
  """The card as Markdown."""
  parts = [
    _head(facts), f"# {facts.name}", _summary(facts), _use(facts),
    _model(facts), _scores(facts), _data(facts), _license(facts),
  ]  # fmt: skip
  return "\n\n".join(parts) + "\n"


def _trained(config: Config) -> list[str]:
  return [task for task in _TASKS if config.batch.get(task)]


def _head(facts: Facts) -> str:
  tasks = [_TASKS[task][1] for task in _trained(facts.config)]
  lines = [
    "---",
    "library_name: unifluid_jax",
    f"license: {facts.license or 'other'}",
    *(f"pipeline_tag: {tag}" for tag in tasks[:1]),
    "tags:",
    *(f"- {tag}" for tag in [facts.config.system, "jax", *tasks[1:]]),
    "---",
  ]
  return "\n".join(lines)


def _summary(facts: Facts) -> str:
  does = [_TASKS[task][0] for task in _trained(facts.config)]
  does = [", ".join(does[:-1]), does[-1]] if len(does) > 1 else does
  count = facts.settings["parameters"] / 1e6
  return (
    f"A model of the system `{facts.config.system}` with {count:,.1f} M "
    f"parameters, trained with unifluid_jax. It {' and '.join(does)}. It "
    "knows its training data, named below, and nothing else."
  )


def _use(facts: Facts) -> str:
  lines = [
    "import unifluid_jax",
    "",
    f'model = unifluid_jax.load("{facts.name}")  # the path of this folder',
  ]
  trained = _trained(facts.config)
  if "t2i" in trained:
    prompt = json.dumps(facts.prompt, ensure_ascii=False)
    lines.append(f"image = model.generate({prompt}, seed=0)")
  if "i2t" in trained:
    shown = "image" if "t2i" in trained else '"image.png"'
    lines.append(f"model.caption({shown})")
  return "\n".join([
    "## Use", "", "```python", *lines, "```", "",
    "From the Hub, load the folder that `huggingface_hub.snapshot_download` "
    "returns. Nothing in it is unpickled or executed.",
    *(f"\n`hf/{part}` alone: `{how}`." for part, how in facts.parts.items()),
  ])  # fmt: skip


def _model(facts: Facts) -> str:
  given = facts.settings
  rows = systems.summary(facts.config) | {
    "parameters": f"{given['parameters']:,}",
    "weights": "averaged (EMA)" if given["averaged"] else "not averaged",
    "stored as": given["dtype"],
    "training step": f"{given['step']:,}",
    "made with": f"unifluid_jax {given['version']}, jax {given['jax']}",
  }
  return "## Model\n\n" + _table(("", ""), rows.items())


def _scores(facts: Facts) -> str:
  step, config = facts.settings["step"], facts.config
  if not facts.scores:
    return f"## Scores\n\nStep {step:,} of the run was not evaluated."
  measured = bool(config.eval.use_ema and config.optim.ema)
  which = "averaged weights" if measured else "weights without averaging"
  note = f"Measured at step {step:,} with {which}, in bfloat16"
  if measured != facts.settings["averaged"]:
    note += "; those that are exported are others"
  rows = [
    (f"`{r['metric']}`", _number(r["value"]), _number(r.get("floor")))
    for r in facts.scores
  ]
  table = _table(("metric", "value", "baseline"), rows)
  return f"## Scores\n\n{note}.\n\n{table}"


def _data(facts: Facts) -> str:
  known = (facts.settings.get("identity") or {}).get("data") or {}
  rows = [
    (name, source.format, without_home(source.path), _digest(known.get(name)))
    for name, source in facts.config.data.train.items()
  ]
  table = _table(("source", "format", "path", "digest"), rows)
  return f"## Training data\n\n{table}"


def _license(facts: Facts) -> str:
  given = facts.license
  said = f"`{given}`" if given else "not stated by whoever exported them"
  out = f"## License\n\nOf the weights: {said}."
  if facts.licenses:
    links = [f"- [{n}]({LICENSES}/{n})" for n in facts.licenses]
    out += "\n\nFound beside the training data, to be kept with this model:\n\n"
    out += "\n".join(links)
  return out


def _digest(known: Mapping[str, Any] | None) -> str:
  return f"`{known['digest'][:12]}`" if known else ""


def _number(value: Any) -> str:
  if isinstance(value, int | float):
    return f"{value:.4g}"
  return "" if value is None else str(value)


def _table(head: tuple[str, ...], rows: Any) -> str:
  lines = [head, tuple("---" for _ in head), *rows]
  cells = ([str(c).replace("|", "\\|") for c in row] for row in lines)
  return "\n".join(f"| {' | '.join(row)} |" for row in cells)
