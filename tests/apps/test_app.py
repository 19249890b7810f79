"""What the app does, apart from browsers."""

import dataclasses
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from unifluid_jax import app
from unifluid_jax.apps import pictures, runs
from unifluid_jax.core import cli
from unifluid_jax.evals.bench import Shown
from unifluid_jax.evals.report import samples


@pytest.fixture(scope="module")
def tabs():
  pytest.importorskip("gradio", reason="of the extra `app`")
  from unifluid_jax.apps import ask, draw, edit, page, redraw, widgets

  return {"ask": ask, "draw": draw, "edit": edit, "page": page,
          "redraw": redraw, "widgets": widgets}  # fmt: skip


@pytest.fixture(scope="module")
def run(make_run):
  return make_run(edit=8)


# --------------------------------------------------------------------- opening


def test_without_gradio_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r'pip install "unifluid_jax\[app\]"'):
    app.main([])


def test_runs_are_called_by_the_ends_of_their_paths_that_differ():
  assert runs.names(["runs/shapes/"]) == ["shapes"]
  assert runs.names(["a/x", "b/x"]) == ["a/x", "b/x"]
  assert runs.names(["r/x@10", "r/x@20"]) == ["x@10", "x@20"]
  assert runs.parse("r/x@10") == ("r/x", 10)
  assert runs.parse("r/x@y") == ("r/x@y", None)


@pytest.mark.parametrize(
  "given, words",
  [
    ([], "--workdir is missing"),
    (["", " "], "--workdir is missing"),
    (["a", "a/"], "name each run once"),
    ([str(i) for i in range(7)], "at most 6 runs, not 7"),
  ],
)
def test_odd_lists_of_runs_are_refused(given, words):
  with pytest.raises(ValueError, match=words):
    runs.names(given)


def test_a_run_that_is_not_there_is_refused_before_any_is_loaded(tmp_path):
  said = []
  with pytest.raises(cli.USER_ERRORS) as error:
    runs.load([str(tmp_path / "gone")], said.append)
  assert "gone" in cli.one_line(error.value) and not said


def test_examples_are_those_of_the_newest_evaluation(tmp_path):
  image = np.zeros((4, 4, 3), np.uint8)
  old = [Shown("generated", image, "old", seed=1)]
  new = [Shown("generated", image, "a", seed=5),
         Shown("answer", image, "which"),
         Shown("caption", image, "describe")]  # fmt: skip
  samples.write(str(tmp_path), 2, old)
  samples.write(str(tmp_path), 10, new)
  found = runs.shown_examples(str(tmp_path))
  assert found == ((runs.Example("a", 5),), ("which",))
  assert runs.shown_examples(str(tmp_path / "none")) == ((), ())


def test_tabs_are_those_that_runs_can_do(tabs, run, make_run):
  able = tabs["page"].abilities
  assert list(able([run])) == ["Draw", "Redraw", "Ask", "Edit"]
  reader = make_run(t2i=0)
  assert list(able([reader])) == ["Ask"]
  painter = make_run(i2t=0)
  found = able([painter, run])
  assert list(found) == ["Draw", "Redraw", "Ask", "Edit", "Compare"]
  assert found["Ask"] == [run] and found["Compare"] == [painter, run]
  with pytest.raises(ValueError, match="neither draw, answer nor edit"):
    able([make_run(t2i=0, i2t=0, text=8)])


def test_everything_is_compiled_before_the_page_opens(run):
  said = []
  runs.warm(run, said.append)
  done = [line.split()[1] for line in said]
  assert done == ["draw", "redraw", "ask", "edit"]


def test_a_run_that_draws_classes_alone_is_compiled_with_one(run):
  """VAR knows no other prompts, and refuses them."""
  config = SimpleNamespace(model=SimpleNamespace(names=("star", "moon")))
  assert dataclasses.replace(run, model=_Holds(config)).drawable == "star"
  assert run.drawable == "warm"


# ---------------------------------------------------------------- what tabs do


def test_settings_are_options_that_the_system_has(run):
  assert run.settings(2.3, 50) == {"cfg": 2.5, "steps": 50}
  assert run.settings(None, None) == {}
  assert run.steps == (4, 10, 25, 50, 100)
  for guidance, steps in ((11.0, None), (-1.0, None), (None, 5)):
    with pytest.raises(ValueError, match=r"guidance is from|steps are one of"):
      run.settings(guidance, steps)


def test_a_runs_own_settings_are_what_it_is_drawn_with(tabs, run):
  """Also where another run is first, and between the slider's stops."""
  sampling = dataclasses.replace(run.config.sampling, cfg=1.25, steps=7)
  config = dataclasses.replace(run.config, sampling=sampling)
  other = dataclasses.replace(run, name="other", model=_Holds(config))
  shown = tabs["widgets"].own_settings(other)
  assert shown == (1.25, 7)
  assert other.sampling(other.settings(*shown)) == sampling


def test_steps_are_those_that_the_head_can_draw_with(run):
  def offered(kind, own):
    model = run.config.model
    head = dataclasses.replace(model.head, kind=kind)
    config = dataclasses.replace(
      run.config,
      model=dataclasses.replace(model, head=head),
      sampling=dataclasses.replace(run.config.sampling, steps=own),
    )
    return dataclasses.replace(run, model=_Holds(config)).steps

  assert offered("energy", 1) == (1,)
  assert offered("shortcut", 4) == (4,)
  assert offered("flow", 4) == (4, 10, 25, 50, 100)


def test_guidance_cannot_be_chosen_where_the_run_has_none(run):
  loss = dataclasses.replace(run.config.loss, prompt_dropout=0.0)
  config = dataclasses.replace(run.config, loss=loss)
  unguided = dataclasses.replace(run, model=_Holds(config))
  assert run.guides and not unguided.guides
  assert unguided.settings(3.0, None) == {}


class _Holds:
  def __init__(self, config):
    self.config = config


def test_a_picture_is_drawn_stage_by_stage(tabs, run):
  made = tabs["draw"].draw(run, " a red circle ", 200, None, None)
  assert [np.asarray(x)[0, 0, 0] for x in made.stages] == [0, 67, 133, 200]
  assert made.picture.size == (32, 32) and made.stages[-1].size == (512, 512)
  assert made.note.startswith("32 × 32 pixels, seed 200, ")
  with pytest.raises(ValueError, match="the text is empty"):
    tabs["draw"].draw(run, "", 0, None, None)


def test_runs_that_draw_no_cells_again_are_named(tabs, run):
  held = _Holds(run.config)
  held.drawings = SimpleNamespace(grid=None)
  other = dataclasses.replace(run, model=held, name="<b>")
  assert tabs["draw"].without_redraw([run]) == ""
  said = tabs["draw"].without_redraw([run, other])
  assert said == "No cells can be drawn again with &lt;b&gt;."
  assert tabs["page"].abilities([run, other])["Redraw"] == [run]


def test_a_board_has_the_shape_of_the_picture(tabs, run):
  fit = lambda image, sampling: image[:16]  # noqa: E731
  held = _Holds(run.config)
  held.drawings = SimpleNamespace(
    grid=(1, 2), fitted=fit, check=lambda *_: None
  )
  wide = dataclasses.replace(run, model=held)
  value = tabs["redraw"].board(wide, np.zeros((32, 32, 3), np.uint8))
  assert (value["rows"], value["columns"], value["cells"]) == (1, 2, "00")
  assert "--rows: ${value.rows}" in tabs["redraw"]._HTML


def test_cells_that_a_browser_chose_are_drawn_again(tabs, run):
  redraw, image = tabs["redraw"], np.full((32, 32, 3), 40, np.uint8)
  value = redraw.board(run, image)
  assert (value["rows"], value["columns"], value["cells"]) == (2, 2, "0000")
  assert value["tail"] and value["picture"].startswith("data:image/png")
  again = redraw.chosen(run, value | {"cells": "0011"})
  made, note = redraw.redraw(run, image, again, "a", 90, None, None)
  made = np.asarray(made)
  assert (made[:16] == 40).all() and (made[16:] == 90).all()
  assert note.startswith("2 of 4 cells drawn again, seed 90")


@pytest.mark.parametrize(
  "value, words",
  [
    (None, "Choose a picture first"),
    ({}, "Choose a picture first"),
    ({"cells": ""}, "Choose a picture first"),
    ({"cells": "0000"}, "Choose the cells"),
    ({"cells": "00001"}, "of another picture"),
    ({"cells": "00<1"}, "of another picture"),
    ({"cells": 3}, "Choose a picture first"),
  ],
)
def test_odd_cells_are_refused(tabs, run, value, words):
  with pytest.raises(ValueError, match=words):
    tabs["redraw"].chosen(run, value)


def test_questions_are_answered_and_pictures_described(tabs, run):
  image = np.zeros((32, 48, 3), np.uint8)
  assert tabs["ask"].ask(run, image, "what colour is the circle") == "yes"
  assert tabs["ask"].ask(run, image, tabs["ask"].DESCRIBE) == "yes"
  with pytest.raises(ValueError, match="Ask a question first"):
    tabs["ask"].ask(run, image, "  ")


def test_a_picture_is_edited(tabs, run):
  made, note = tabs["edit"].edit(run, np.zeros((8, 8, 3), np.uint8), "x", 77)
  assert (np.asarray(made) == 77).all() and note.startswith("Seed 77, ")


# -------------------------------------------------------------------- pictures


def test_the_encoder_sees_the_resized_picture(run):
  wide = np.zeros((20, 80, 3), np.uint8)
  wide[:, 40:] = 255
  seen = pictures.seen(run.model, wide)
  assert seen.shape == (32, 32, 3)  # squashed, as training does
  assert (seen[:, :12] == 0).all() and (seen[:, 20:] == 255).all()


@pytest.mark.parametrize(
  "content, words",
  [
    (b"no image", "This picture cannot be used: image of 8 bytes cannot be"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be decoded"),
    ("large", "more than data.max_pixels"),
  ],
)
def test_bad_uploads_get_one_sentence(tmp_path, content, words):
  path = tmp_path / "secret-name.png"
  if content == "large":
    Image.new("RGB", (101, 100)).save(path)
  else:
    path.write_bytes(content)
  with pytest.raises(ValueError, match=words) as error:
    pictures.read(str(path), 10_000)
  said = str(error.value)
  assert "\n" not in said and "secret-name" not in said and said.endswith(".")


def test_a_missing_upload_gets_one_sentence(tmp_path):
  for path in (None, ""):
    with pytest.raises(ValueError, match="Choose a picture first"):
      pictures.read(path, 100)
  with pytest.raises(ValueError, match="gone: choose it again"):
    pictures.read(str(tmp_path / "gone.png"), 100)


def test_small_pictures_are_enlarged_by_whole_factors():
  image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
  big = np.asarray(pictures.enlarged(image))
  assert big.shape == (512, 512, 3)
  np.testing.assert_array_equal(big[::256, ::256], image)
  assert pictures.enlarged(Image.new("RGB", (200, 100))).size == (200, 100)


def test_unknown_words_are_marked_and_never_markup(run):
  words = run.model.unknown_words("a red <script> zebra")
  assert "zebra" in words and "red" not in words
  said = pictures.marked(["<script>", "zebra"])
  assert "<mark>zebra</mark>" in said and "<script>" not in said
  assert pictures.marked([]) == ""


@pytest.mark.parametrize("task", ["t2i", "i2t", "edit"])
def test_a_text_whose_end_does_not_fit_is_named(task, make_run):
  model = make_run(edit=8).model
  field = "prefix" if task == "i2t" else "prompt"
  fits = getattr(model.config.text, field)
  texts = ["red " * n for n in range(1, 2 * fits)]
  cut = [model.is_cut(text, task) for text in texts]
  counts = [len(model.tokenizer.encode(text)) for text in texts]
  # Begin or end of a text take a token or two.
  assert any(cut == [n > fits - k for n in counts] for k in range(3))
  assert not cut[0] and cut[-1]
  assert "too long" in pictures.marked([], cut=True)
