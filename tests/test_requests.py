"""What `generate` refuses, before it loads anything."""

import dataclasses
import math
import os

import numpy as np
import pytest
from PIL import Image

from unifluid_jax import arguments, requests, systems
from unifluid_jax.core import cli
from unifluid_jax.requests import Flags

ONE = Flags(prompts=["a red circle"])
SPEC = systems.spec("unifluid")


def check(given):
  return requests.check(given, lambda: SPEC)


def check_sampling(options):
  arguments.check_sampling(options, SPEC.sampling, SPEC.ranges)


@pytest.fixture
def place(tmp_path, monkeypatch):
  """A directory with sound and unusable files, made the current one."""
  monkeypatch.chdir(tmp_path)
  Image.new("RGB", (8, 6), "red").save("image.png")
  (tmp_path / "folder").mkdir()
  (tmp_path / "text.png").write_text("no image")
  (tmp_path / "blank.txt").write_text("\n  \n")
  (tmp_path / "latin.txt").write_bytes("café\n".encode("latin-1"))
  (tmp_path / "two.txt").write_bytes(b"\xef\xbb\xbfa star\r\n\r\ntwo stars\r\n")
  (tmp_path / "pipe").touch()
  os.remove("pipe")
  os.mkfifo("pipe")
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "00000.png").touch()
  return tmp_path


ODD = [
  ({}, "nothing to do: give --prompt"),
  ({"prompts": [""]}, "--prompt: the text is empty"),
  ({"prompts": ["a", "  "], "out": "d"}, "--prompt: the text is empty"),
  ({"prompts": ["\udcff"]}, "--prompt: '\\udcff' is not valid Unicode"),
  ({"prompts_file": "nowhere.txt"}, "nowhere.txt: no such file or directory"),
  ({"prompts_file": "folder"}, "folder is no regular file"),
  ({"prompts_file": "blank.txt"}, "--prompts=blank.txt holds no prompt"),
  ({"prompts_file": "latin.txt"}, "latin.txt is not UTF-8 (byte 3)"),
  ({"prompts_file": "pipe"}, "pipe is no regular file"),
  ({"samples": 0}, "--samples=0: choose 1 to"),
  ({"samples": -3}, "--samples=-3: choose 1 to"),
  ({"samples": 10**9}, "--samples=1000000000: choose 1 to"),
  ({"seed": -1}, "--seed=-1: a whole number from 0 to 4294967295"),
  ({"seed": 2**32}, "--seed=4294967296: a whole number"),
  ({"seed": 2**32 - 1, "samples": 2, "out": "d"}, "from 0 to 4294967294"),
  ({"seed": 10**30}, "a whole number from 0"),
  ({"step": -1}, "--step=-1"),
  ({"cfg": math.nan}, "--cfg=nan must be at least 0"),
  ({"cfg": math.inf}, "--cfg=inf must be at least 0"),
  ({"cfg": -1.0}, "--cfg=-1.0 must be at least 0"),
  ({"temperature": -0.5}, "--temperature=-0.5 must be at least 0"),
  ({"temperature": math.nan}, "--temperature=nan"),
  ({"steps": 0}, "--steps=0 must be in [1, 1000]"),
  ({"steps": -5}, "--steps=-5 must be in [1, 1000]"),
  ({"steps": 1001}, "--steps=1001 must be in [1, 1000]"),
  ({"order": "up"}, "--order='up': choose one of raster, random"),
  ({"prompts": [], "question": "what"}, "nothing to do"),
  ({"question": "what"}, "--question needs --image=FILE"),
  ({"edit": "turn it"}, "--edit needs --image=FILE"),
  ({"prompts": [], "image": "image.png", "question": ""}, "--question: the te"),
  ({"prompts": [], "image": "image.png", "edit": " "}, "--edit: the text is"),
  ({"prompts": [], "image": "image.png", "edit": "a", "question": "b"},
   "one at a time"),
  ({"image": "image.png", "edit": "a"}, "--edit and --prompt: one at a time"),
  ({"prompts": [], "image": "image.png", "samples": 2}, "--samples=2 is of pr"),
  ({"prompts": [], "image": "image.png", "edit": "a", "samples": 2},
   "--samples=2 is of prompts"),
  ({"prompts": [], "image": "image.png", "cfg": 2.0}, "--cfg: no image is"),
  ({"given": "image.png"}, "--given and --redraw belong together: give both"),
  ({"redraw": ["0", "0", "4", "4"]}, "--given and --redraw belong together"),
  ({"given": "nowhere.png", "redraw": ["0", "0", "4", "4"]}, "no image at"),
  ({"given": "image.png", "redraw": ["0", "4"]}, "--redraw=0,4: give left,top"),
  ({"given": "image.png", "redraw": ["0", "0", "x", "4"]}, "--redraw=0,0,x,4"),
  ({"given": "image.png", "redraw": ["4", "0", "4", "4"]}, "left < right"),
  ({"given": "image.png", "redraw": ["0", "0", "nan", "4"]}, "left < right"),
  ({"prompts": [], "image": "image.png", "edit": "a", "given": "image.png",
    "redraw": ["0", "0", "4", "4"]}, "--redraw needs --prompt"),
  ({"image": "nowhere.png"}, "no image at nowhere.png"),
  ({"image": "folder"}, "folder is no regular file"),
  ({"image": "text.png"}, "text.png: image of 8 bytes cannot be decoded"),
  ({"image": "pipe"}, "pipe is no regular file"),
  ({"image": ""}, ". is no regular file"),
  ({"prompts": [], "image": "image.png", "out": "a.png"}, "--out: no image is"),
  ({"out": "image.xyz"}, "cannot write .xyz; use .png, .jpg"),
  ({"out": ""}, "is no path"),
  ({"out": "a\0b"}, "is no path"),
  ({"out": "image.png/a.png"}, "image.png: not a directory; a file lies"),
  ({"out": "text.png/deep/a.png"}, "text.png: not a directory; a file lies"),
  ({"out": "two.txt"}, "cannot write .txt"),
  ({"samples": 2}, "2 images need a directory: --out=DIR"),
  ({"prompts_file": "two.txt"}, "3 images need a directory: --out=DIR"),
  ({"samples": 2, "out": "a.png"}, "2 images need a directory: --out=a"),
  ({"samples": 2, "out": "two.txt"}, "two.txt: not a directory"),
  ({"samples": 2, "out": "full"}, "full/00000.png exists: choose another"),
]  # fmt: skip


def request(**changes):
  drawing = ("cfg", "temperature", "steps", "order")
  sampling = {k: changes.pop(k) for k in drawing if k in changes}
  return dataclasses.replace(ONE, sampling=sampling, **changes)


@pytest.mark.parametrize("changes, words", ODD)
def test_odd_calls_are_refused_in_one_line(place, changes, words):
  before = sorted(place.rglob("*"))
  given = request(**changes) if changes else Flags()
  with pytest.raises(cli.USER_ERRORS) as error:
    check(given)
  said = cli.one_line(error.value)
  assert words in said and "\n" not in said, said
  assert sorted(place.rglob("*")) == before


def test_folders_that_may_not_be_written_are_refused(place, monkeypatch):
  """Permissions as another user has them: root may write everywhere."""
  monkeypatch.setattr(os, "access", lambda path, _: path.name != "folder")
  with pytest.raises(PermissionError) as error:
    check(request(out="folder/new/a.png"))
  assert "folder: permission denied; choose" in cli.one_line(error.value)
  assert check(request(out="full/a.png")).names == ["full/a.png"]


def test_without_out_no_file_is_replaced(place):
  for expected in ("out.png", "out-1.png", "out-2.png"):
    made = check(ONE)
    assert (made.names, made.listing) == ([expected], None)
    (place / expected).touch()
  named = check(request(out="out.png"))  # said so: replaced
  assert named.names == ["out.png"]


def test_directories_take_several_images_and_their_prompts(place):
  made = check(
    request(prompts=["a"], prompts_file="two.txt", samples=2, out="new/dir")
  )
  assert made.prompts == ["a", "a", "a star", "a star", *["two stars"] * 2]
  assert made.names[-1] == "new/dir/00005.png" and len(made.names) == 6
  assert made.listing == "new/dir/prompts.txt"
  one = check(request(out="new/dir"))
  assert one.names == ["new/dir/00000.png"]


def test_an_image_is_read_and_nothing_is_made_for_its_caption(place):
  looked = check(Flags(image="image.png"))
  assert looked.names == [] and looked.image.shape == (6, 8, 3)
  edited = check(Flags(image="image.png", edit="turn it", out="e.jpg"))
  assert edited.names == ["e.jpg"]
  assert np.array_equal(edited.image, looked.image)


def test_a_part_to_draw_again_is_an_image_and_a_box(place):
  made = check(request(given="image.png", redraw=["0", "1.5", "4", "6"]))
  assert made.given.shape == (6, 8, 3) and made.redraw == (0, 1.5, 4, 6)
  assert (check(ONE).given, check(ONE).redraw) == (None, None)


def test_options_that_are_not_given_are_left_out(place):
  made = check(request(cfg=1.0, steps=None, order="random"))
  assert made.sampling == {"cfg": 1.0, "order": "random"}


def test_an_option_that_the_system_lacks_is_no_flag_of_it(place):
  with pytest.raises(ValueError, match="^unknown sampling option 'size'"):
    check(dataclasses.replace(ONE, sampling={"size": (32, 64)}))
  with pytest.raises(ValueError, match="^--steps=0"):
    check(dataclasses.replace(ONE, sampling={"steps": 0}))


@pytest.mark.parametrize(
  "options, words",
  [
    ({"cgf": 1.0}, "unknown sampling option 'cgf'; known: steps, cfg"),
    ({"top_p": 0.0}, "top_p=0.0 must be in (0, 1]"),
    ({"top_p": 1.5}, "top_p=1.5"),
    ({"top_k": -1}, "top_k=-1 must be at least 0"),
    ({"beams": 0}, "beams=0"),
    ({"steps": 4.0}, "steps=4.0 must be a whole number"),
    ({"cfg": "3"}, "cfg=3 must be a number"),
    ({"cfg": True}, "cfg=True must be a number"),
    ({"text_temperature": 0}, "text_temperature=0"),
    ({"text": "best"}, "text='best': choose one of greedy, sample, beam"),
  ],
)
def test_options_of_the_api_are_checked(options, words):
  with pytest.raises(ValueError) as error:
    check_sampling(options)
  assert words in str(error.value)


def test_sound_options_pass():
  check_sampling({
    "cfg": np.float32(2), "steps": np.int64(1000), "temperature": 0,
    "text": "beam", "top_p": 1, "order": None,
  })  # fmt: skip
  arguments.check_seeds(2**32 - 3, 3)


def test_switches_are_true_or_false():
  spec = systems.spec("var")
  for value in (True, False, None):
    arguments.check_sampling({"smooth": value}, spec.sampling, spec.ranges)
  for value in (1, "True"):
    with pytest.raises(ValueError, match="must be True or False"):
      arguments.check_sampling({"smooth": value}, spec.sampling, spec.ranges)
