"""The notebooks, run from top to bottom with toy parameters."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

from tests.data import emoji_packages_fixture

REPO = Path(__file__).parent.parent
# Compiles fast, as tests/conftest.py does.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
COLABS = REPO / "colabs"
NAMES = sorted(path.name for path in COLABS.glob("*.ipynb"))
# With what they showed when they ran.
STORED = ("app.ipynb", "demo.ipynb", "emoji.ipynb", "your_images.ipynb")
SMALL = "--config.steps=2 --config.checkpoint.every=2 --config.log.every=1 "
# Of configs/folder.py, whose configuration is not a toy.
TINY = (
  "--config.model.decoder.width=32 --config.model.decoder.depth=1 "
  "--config.model.vit.width=32 --config.model.vit.depth=1 "
  "--config.model.head.width=32 --config.model.head.depth=1 "
  "--config.model.vae.base=32 --config.batch.t2i=2 --config.batch.i2t=2 "
)
DRAW = "--config.sampling.steps=2 "


def read(name):
  return nbformat.read(COLABS / name, as_version=4)


def parameters(notebook):
  """Index of the one cell that papermill would put its values after."""
  (index,) = [
    i for i, cell in enumerate(notebook.cells)
    if "parameters" in cell.metadata.get("tags", [])
  ]  # fmt: skip
  return index


def run(notebook, where, home, path=(), **values):
  """Executes it with other parameters; commands must leave with status 0.

  `path`: where modules are looked for before the repository.
  """
  code = "\n".join(f"{key} = {value!r}" for key, value in values.items())
  cells, start = [], parameters(notebook) + 1
  for cell in notebook.cells[start:]:
    cells.append(cell)
    if any(x.lstrip().startswith("!") for x in cell.source.splitlines()):
      check = "assert globals().pop('_exit_code', 0) == 0"
      cells.append(nbformat.v4.new_code_cell(check))
  changed = nbformat.v4.new_code_cell(code)
  notebook.cells = [*notebook.cells[:start], changed, *cells]
  programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
  env = {
    "PATH": programs, "HOME": str(home),
    "PYTHONPATH": ":".join(map(str, (*path, REPO))),
    "JAX_PLATFORMS": "cpu", "IPYTHONDIR": f"{home}/ipython",
    "XLA_FLAGS": FLAGS,
  }  # fmt: skip
  client = nbclient.NotebookClient(
    notebook, timeout=300, kernel_name="python3",
    resources={"metadata": {"path": str(where)}},
  )  # fmt: skip
  client.execute(env=env)
  return [output for cell in notebook.cells if cell.cell_type == "code"
          for output in cell.outputs]  # fmt: skip


def pictures(outputs):
  return sum("image/png" in output.get("data", {}) for output in outputs)


def errors(outputs):
  return [x for x in outputs if x.output_type == "error"]


def said(outputs):
  return "".join(output.get("text", "") for output in outputs)


@pytest.mark.parametrize("name", NAMES)
def test_is_valid(name):
  notebook = read(name)
  nbformat.validate(notebook)
  first = notebook.cells[0]
  assert first.cell_type == "markdown"
  assert "**Hardware:**" in first.source and "**Time:**" in first.source
  parameters(notebook)
  ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
  if name in STORED:
    order = list(range(1, len(ran) + 1))
    assert [cell.execution_count for cell in ran] == order
    outputs = [output for cell in ran for output in cell.outputs]
    assert pictures(outputs) >= 2 and not errors(outputs)
    assert (COLABS / name).stat().st_size < 1 << 20
    text = (COLABS / name).read_text()
    assert not re.search("/(home|root|tmp|usr|Users|work)/", text)
  else:
    assert not any(cell.outputs or cell.execution_count for cell in ran)


def test_demo(tmp_path):
  """Opened as Jupyter does, in colabs/."""
  run_dir = tmp_path / "run"
  overrides = (
    f"--config.data.root={tmp_path}/data "
    f"--config.text.tokenizer={tmp_path}/data/tokenizer.model "
    f"--config.model.vae_path={run_dir}/vae "
    "--config.data.world.train=64 --config.eval.prompts_per_task=1 "
    "\"--config.eval.metrics=('geneval','captions')\" "
  )
  outputs = run(
    read("demo.ipynb"), COLABS, tmp_path, CONFIG="configs/debug.py",
    VAE_CONFIG="configs/debug.py:vae", WORKDIR=str(run_dir),
    OVERRIDES=overrides + SMALL + DRAW,
    VAE_OVERRIDES=f"--config.data.root={tmp_path}/data " + SMALL,
  )  # fmt: skip
  text = said(outputs)
  assert str(REPO) in text and "train 2/2 (100 %)" in text
  assert "geneval/overall" in text and "is there a green circle?  " in text
  assert pictures(outputs) == 3
  (page,) = [o for o in outputs if "<iframe" in o.get("data", {}).get(
    "text/html", "")]  # fmt: skip
  assert "Evaluation report" in page["data"]["text/html"]


def test_your_images(tmp_path):
  """A folder whose name has a space, opened in the checkout's root."""
  folder = tmp_path / "my images"
  folder.mkdir()
  rng = np.random.default_rng(0)
  with (folder / "captions.jsonl").open("w") as lines:
    for i, colour in enumerate(("red", "green", "blue", "grey")):
      pixels = rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(folder / f"{i}.png")
      row = {"image": f"{i}.png", "prefix": "", "suffix": f"a {colour} road"}
      lines.write(json.dumps(row) + "\n")
  run_dir = tmp_path / "run"
  outputs = run(
    read("your_images.ipynb"), REPO, tmp_path, FOLDER=str(folder),
    WORKDIR=str(run_dir),
    OVERRIDES=f"--config.text.tokenizer={tmp_path}/tokenizer.model "
    f"--config.model.vae_path={run_dir}/vae " + SMALL + DRAW + TINY,
    VAE_OVERRIDES=SMALL + "--config.model.vae.base=32 --config.batch.image=2",
  )  # fmt: skip
  assert said(outputs).count("train 2/2 (100 %)") == 2
  assert pictures(outputs) == 5


# Every Python process takes the packages in miniature for those of the world.
PINNED = """
import types
from tests.data import emoji_packages_fixture
emoji_packages_fixture.pinned(types.SimpleNamespace(setattr=setattr))
"""


def test_emoji_and_the_app(tmp_path, monkeypatch):
  """The pictures of the tests; the app plays with what was trained on them."""
  pytest.importorskip("gradio", reason="of the extra `app`")
  made = emoji_packages_fixture.pinned(monkeypatch)
  packages = emoji_packages_fixture.archives(tmp_path / "npm", made)
  patch, run_dir = tmp_path / "patch", tmp_path / "run"
  patch.mkdir()
  (patch / "sitecustomize.py").write_text(PINNED)
  world = (
    f"--config.data.root={tmp_path}/data --config.data.world.validation=2 "
    "\"--config.data.world.sets=('noto','fluent','emojione')\" "
    "\"--config.data.world.groups=('animals & nature','food & drink',"
    "'people & body')\" "
  )
  outputs = run(
    read("emoji.ipynb"), REPO, tmp_path, [patch], WORKDIR=str(run_dir),
    PACKAGES=packages,
    OVERRIDES=world +
    f"--config.text.tokenizer={tmp_path}/data/tokenizer.model "
    f"--config.model.vae_path={run_dir}/vae --config.text.train_vocab=96 "
    "--config.model.decoder.vocab=96 "
    "\"--config.eval.metrics=('emoji_captions',)\" --config.eval.batch=2 "
    + SMALL + DRAW + TINY,
    VAE_OVERRIDES=world + SMALL
    + "--config.model.vae.base=32 --config.batch.image=2",
  )  # fmt: skip
  assert said(outputs).count("train 2/2 (100 %)") == 2
  assert "emoji_captions_held_out/concept" in said(outputs)
  assert pictures(outputs) == 4
  notebook = read("app.ipynb")
  # The notebook leaves the page open.
  notebook.cells.append(nbformat.v4.new_code_cell("page.terminate()"))
  with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
  outputs = run(
    notebook, REPO, tmp_path, RUN=str(run_dir), PORT=port,
    PROMPT="red apple, noto style",
  )  # fmt: skip
  assert f"http://127.0.0.1:{port}/ ready after" in said(outputs)
  assert pictures(outputs) == 2


def first_steps(name):
  """A notebook up to the cell that goes into the checkout; that cell."""
  notebook = read(name)
  end = next(
    i for i, cell in enumerate(notebook.cells) if "git clone" in cell.source
  )
  notebook.cells = notebook.cells[: end + 1]
  return notebook, notebook.cells[end].source


def test_clones_where_there_is_no_checkout(tmp_path):
  assert len({first_steps(name)[1] for name in NAMES}) == 1
  origin, here = tmp_path / "origin", tmp_path / "content"
  here.mkdir()
  (origin / "configs").mkdir(parents=True)
  (origin / "configs" / "base.py").write_text("")
  git = ["git", "-C", origin, "-c", "user.name=n", "-c", "user.email=e@x"]
  for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
    subprocess.run([*git, *words], check=True)
  with pytest.raises(nbclient.exceptions.CellExecutionError) as error:
    run(first_steps("demo.ipynb")[0], here, tmp_path)
  assert "set REPOSITORY to the address of one" in str(error.value)
  for _ in range(2):  # a restarted session finds what it has cloned
    outputs = run(
      first_steps("demo.ipynb")[0], here, tmp_path,
      REPOSITORY=f"file://{origin}",
    )  # fmt: skip
    assert said(outputs).strip() == str(here / "unifluid_jax")


def test_badges_and_addresses_come_from_git(tmp_path):
  folder = tmp_path / "colabs"
  folder.mkdir()
  for name in (*NAMES, "badges.py"):
    shutil.copy(COLABS / name, folder / name)
  git = ["git", "-C", str(tmp_path)]
  program = [sys.executable, str(folder / "badges.py")]
  subprocess.run([*git, "init", "-q"], check=True)
  refused = subprocess.run(program, capture_output=True, text=True)
  assert refused.returncode == 1 and "origin is not set" in refused.stderr
  origin = "git@github.com:someone/thing.git"
  subprocess.run([*git, "remote", "add", "origin", origin], check=True)
  contents = []
  for _ in range(2):  # the second call changes nothing
    subprocess.run(program, check=True)
    contents.append([(folder / name).read_text() for name in NAMES])
  assert contents[0] == contents[1]
  for name, text in zip(NAMES, contents[0], strict=True):
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    first, rest = notebook.cells[0].source.split("\n\n", 1)
    assert first.startswith("[![Open in Colab](https://colab.research.google")
    assert first.endswith(f"/github/someone/thing/blob/main/colabs/{name})")
    assert rest == read(name).cells[0].source
    source = notebook.cells[parameters(notebook)].source
    assert 'REPOSITORY = "https://github.com/someone/thing.git"  #' in source
    assert notebook.cells[1:] == [
      *read(name).cells[1 : parameters(notebook)],
      notebook.cells[parameters(notebook)],
      *read(name).cells[parameters(notebook) + 1 :],
    ]
