"""The report page: complete, well-formed, self-contained, escaped."""

import base64
import dataclasses
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from unifluid_jax.evals import report

_VOID = {"meta", "img", "br", "link", "input", "hr"}


class _Page(HTMLParser):
  """Collects text, tags and attributes; fails on tags out of balance."""

  def __init__(self, html):
    super().__init__()
    self.open, self.text, self.tags, self.attributes = [], [], [], []
    self.feed(html)
    self.close()
    assert not self.open, f"never closed: {self.open}"

  def handle_starttag(self, tag, attrs):
    self.handle_startendtag(tag, attrs)
    if tag not in _VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, name, value) for name, value in attrs]

  def handle_endtag(self, tag):
    assert self.open and self.open[-1] == tag, f"</{tag}> in {self.open}"
    self.open.pop()

  def handle_data(self, data):
    if "style" not in self.open:
      self.text.append(data)

  def values(self, tag, name):
    return [v for t, n, v in self.attributes if (t, n) == (tag, name)]


def _image(seed, side=8):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.fixture(name="data")
def _data():
  steps = tuple(range(1, 101))
  return report.ReportData(
    name="shapes <2>",
    step=2600,
    date="22 November 2025",
    config={"optimizer": "muon & adamw"},
    checkpoints=(1300, 2600),
    scores=(
      report.ScoreRow("overall", (0.5, 0.741), floor=0.09, bar=0.7,
                      group="Images", headline=True),
      report.ScoreRow("distance", (math.nan, 12.25), digits=1, bar=11.0,
                      lower_is_better=True),
      report.ScoreRow("CIDEr-D", (None, None)),
    ),
    curves=(
      report.Curve("L_visual", steps, tuple(1 / s for s in steps)),
      report.Curve("L_text", steps, (math.nan,) + (2.0,) * 99),
      report.Curve("L_none", (), ()),
    ),
    geneval=(
      report.TaskBar("position", 0.63, floor=0.02),
      report.TaskBar("counting", None),
      report.TaskBar("mean", 0.74, overall=True),
    ),
    floor_name="floor: unrelated images",
    generations=(
      report.Generation("a red circle", _image(0), True, "single"),
      report.Generation("two crosses", _image(1), False, "single"),
      report.Generation("free prompt", _image(2)),
    ),
    understanding=(
      report.Understanding(
        _image(3), "<script>alert('x')</script>", ("a \"red\" circle",), False,
        (report.Answer("how many?", "", "2 & more", False),),
      ),
    ),
    edits=(
      report.EditSample("make it <b>green</b>", _image(4), _image(5)),
      report.EditSample("move left", _image(6), _image(7), _image(8), True),
    ),
    notes=("rank-deficient: biased high",),
  )  # fmt: skip


def test_page_holds_everything_given(data):
  page = _Page(report.render_report(data))
  text = " ".join(page.text)
  for expected in (
    "shapes <2>", "2,600", "22 November 2025", "muon & adamw", "0.741",
    "0.500", "0.090", "0.700", "12.2", "11.0", "L_visual", "L_text",
    "position", "0.63", "mean", "floor: unrelated images", "a red circle",
    "two crosses", "1 of 2 correct", "free prompt", "how many?", "2 & more",
    'a "red" circle', "make it <b>green</b>", "move left", "target",
    "rank-deficient: biased high",
  ):  # fmt: skip
    assert expected in text, expected
  assert page.tags.count("img") == 3 + 1 + 2 + 3
  assert "L_none" not in text
  assert text.index("mean") < text.index("position")  # overall leads


def test_images_are_the_given_pixels(data):
  page = _Page(report.render_report(data))
  sources = page.values("img", "src")
  head = "data:image/png;base64,"
  assert all(s.startswith(head) for s in sources)
  first = Image.open(io.BytesIO(base64.b64decode(sources[0][len(head) :])))
  assert first.size == (384, 384)
  np.testing.assert_array_equal(np.asarray(first)[::48, ::48], _image(0))


def test_page_needs_nothing_from_elsewhere(data):
  html = report.render_report(data)
  page = _Page(html)
  assert not {"script", "link", "iframe", "object"} & set(page.tags)
  assert "//" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
  assert not re.search(r"@import|url\(", html)
  ids = page.values("section", "id")
  assert [h.removeprefix("#") for h in page.values("a", "href")] == ids


def test_model_output_is_escaped(data):
  html = report.render_report(data)
  assert "<script" not in html
  assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in html
  assert "<b>green" not in html


def test_missing_values_are_dashes(data):
  html = report.render_report(data)
  assert "nan" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", html).lower()
  row = html[html.index("CIDEr-D") :]
  cells = re.findall(r"<td[^>]*>(.*?)</td>", row[: row.index("</tr>")])
  assert [c.strip() for c in cells] == ["–"] * 4  # two steps, floor, bar
  assert '<span class="value">–</span>' in html  # GenEval counting


def test_only_the_latest_checkpoint_is_emphasised(data):
  html = report.render_report(data)
  cells = re.findall(r'<td class="latest">(.*?)</td>', html)
  assert cells == ["0.741", "12.2", "–"]


def test_bars_know_which_way_is_better(data):
  def reached(row):
    html = report.render_report(
      dataclasses.replace(data, scores=(row,), generations=(), edits=())
    )
    return 'title="reached"' in html, 'title="not reached"' in html

  row = report.ScoreRow("m", (0.0, 2.0), bar=2.0)
  assert reached(row) == (True, False)
  assert reached(dataclasses.replace(row, bar=2.1)) == (False, True)
  lower = dataclasses.replace(row, lower_is_better=True)
  assert reached(dataclasses.replace(lower, bar=2.1)) == (True, False)
  assert reached(dataclasses.replace(lower, bar=1.9)) == (False, True)
  assert reached(dataclasses.replace(row, values=(1.0, None))) == (False, False)


def test_a_bare_report_has_no_empty_sections():
  html = report.render_report(report.ReportData("run", 0, "today"))
  page = _Page(html)
  assert "section" not in page.tags
  assert "run" in page.text


def test_wrong_data_is_refused_by_name(data):
  row = report.ScoreRow("overall", (1.0,))
  with pytest.raises(ValueError, match="'overall' has 1 values for 2"):
    report.render_report(dataclasses.replace(data, scores=(row,)))
  floats = report.Generation("x", np.zeros((4, 4, 3), np.float32))
  with pytest.raises(ValueError, match="uint8"):
    report.render_report(dataclasses.replace(data, generations=(floats,)))


def test_written_file_is_the_page(data, tmp_path):
  path = tmp_path / "deep" / "report.html"
  report.write_report(path, data)
  assert path.read_text(encoding="utf-8") == report.render_report(data)


def test_curve_from_rows_skips_other_rows():
  rows = [{"step": 1, "a": 2.0}, {"step": 2, "b": 1.0}, {"step": 3, "a": 4}]
  curve = report.curve_from_rows(rows, "a", "A")
  assert (curve.steps, curve.values) == ((1, 3), (2.0, 4.0))


def test_curve_falls_where_the_loss_falls(data):
  html = report.render_report(data)
  path = re.search(r'class="smooth" d="M([^"]*)"', html[html.index("L_vis") :])
  points = [tuple(map(float, p.split())) for p in path[1].split("L")]
  xs, ys = zip(*points, strict=True)
  assert list(xs) == sorted(xs)
  assert ys[0] < ys[-1]  # SVG's y points down
  assert "log scale" in html  # falls by a factor of a hundred


def test_contact_sheet_places_images_and_captions():
  images = [_image(i, side=32) for i in range(5)]
  captions = ["one", "two words that need wrapping", "", "four", "five"]
  sheet = report.contact_sheet(images, captions, columns=3, scale=2)
  pixels = np.asarray(sheet)
  assert sheet.width == 16 + 3 * (64 + 16)
  for i, image in enumerate(images):
    x, y = 16 + i % 3 * 80, 16 + (sheet.height - 16) // 2 * (i // 3)
    np.testing.assert_array_equal(pixels[y : y + 64 : 2, x : x + 64 : 2], image)
  below = pixels[16 + 64 : 16 + (sheet.height - 16) // 2]
  assert below[:, 96:160].min() < 120  # the second caption's ink
  assert below[:, 176:].min() == 255  # the empty caption, before row two
  with pytest.raises(ValueError, match="2 captions for 1 images"):
    report.contact_sheet(images[:1], ["a", "b"], columns=1)
  with pytest.raises(ValueError, match="share one size"):
    report.contact_sheet([_image(0), _image(0, 4)], ["a", "b"], columns=1)
