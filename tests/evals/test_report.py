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

from unifluid_jax.evals.report import (
  charts as report_charts,
)
from unifluid_jax.evals.report import (
  images as report_images,
)
from unifluid_jax.evals.report import (
  page as report,
)

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
    tiles=(
      report.Tile("GenEval <all>", 0.7412, "of 1", end=1.0, floor=0.09,
                  bar=0.7),
      report.Tile("Ratio", 1.449, "× real", bar=1.2, lower_is_better=True),
      report.Tile("CIDEr-D", 8.711, "of 10", 1, end=10.0,
                  remark="at step 1,300"),
    ),
    checkpoints=(1300, 2600),
    scores=(
      report.ScoreRow("overall", (0.5, 0.741), floor=0.09, bar=0.7,
                      group="Images"),
      report.ScoreRow("distance", (math.nan, 12.25), digits=1, bar=11.0,
                      lower_is_better=True),
      report.ScoreRow("detector", (1.0, 1.0), constant=True),
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
    floor_name="chance: unrelated images",
    generations=(
      report.Generation("a red circle", _image(0), True, "single",
                        "not to be shown"),
      report.Generation("two crosses", _image(1), False, "counting",
                        "expected cross >= 2, found 1\nand <more>"),
      report.Generation("free prompt", _image(2)),
    ),
    progress=(
      report.Chart("Distance", (report.Curve("", (1, 2), (9.0, 8.0)),), 6.5,
                   "real & true"),
      report.Chart("Once", (report.Curve("", (1,), (9.0,)),)),
    ),
    sample_steps=(1300, 2600),
    samples=(
      report.SampleRow("a red circle <i>", (
        None, report.Generation("a red circle <i>", _image(9), True),
      )),
    ),
    captions=(
      report.Caption(_image(3), "<script>alert('x')</script>",
                     ("a \"red\" circle", "another"), 1.234, False, "seen"),
    ),
    answers=(
      report.Answer(_image(10), "how many?", "", "2 & more", False, "count"),
      report.Answer(_image(11), "how many more?", "3", "3", True, "count"),
      report.Answer(_image(12), "is it <u>red</u>?", "no", "no", True, "y/n"),
    ),
    edits=(
      report.EditSample("make it <b>green</b>", _image(4), _image(5)),
      report.EditSample("move left", _image(6), _image(7), _image(8), True),
    ),
    notes=("rank-deficient: biased high",),
    times={"training time": "7:51"},
    starts=(
      report.Start("python -m unifluid_jax.main --config='<x>.py'",
                   "training from step 0", {"commit": "abc123"}),
    ),
    attribution="# Who drew it\n\n- A. <Artist>, MIT",
  )  # fmt: skip


def test_page_holds_everything_given(data):
  page = _Page(report.render_report(data))
  text = " ".join(page.text)
  for expected in (
    "shapes <2>", "2,600", "22 November 2025", "muon & adamw", "0.741",
    "0.500", "0.090", "0.700", "12.2", "11.0", "L_visual", "L_text",
    "position", "0.63", "mean", "chance: unrelated images", "a red circle",
    "two crosses", "1 of 1 correct", "free prompt", "how many?", "2 & more",
    "GenEval <all>", "8.7", "of 10", "at step 1,300", "7:51", "abc123",
    "python -m unifluid_jax.main --config='<x>.py'", "Who drew it",
    "A. <Artist>, MIT",
    'a "red" circle', "another", "1.23", "make it <b>green</b>", "move left",
    "target",
    "rank-deficient: biased high", "real & true", "is it <u>red</u>?",
  ):  # fmt: skip
    assert expected in text, expected
  # What opens the page stands once more in its section.
  assert page.tags.count("img") == 2 * (3 + 1 + 3 + 2 + 3) + 1
  assert "L_none" not in text and "Once" not in text
  assert text.index("mean") < text.index("position")  # overall leads


def test_images_are_the_given_pixels(data):
  page = _Page(report.render_report(data))
  sources = page.values("img", "src")
  head = "data:image/png;base64,"
  assert all(s.startswith(head) for s in sources)
  shown = [
    np.asarray(Image.open(io.BytesIO(base64.b64decode(s[len(head) :]))))
    for s in sources
  ]
  # What opens the page takes one of each task in turn; then the grid over
  # steps, its missing cell without an image.
  seeds = [0, 1, 2, 3, 10, 12, 11, 4, 5, 6, 7, 8]
  seeds += [9, 0, 1, 2, 3, 10, 11, 12, 4, 5, 6, 7, 8]
  for pixels, seed in zip(shown, seeds, strict=True):
    assert pixels.shape == (384, 384, 3)
    np.testing.assert_array_equal(pixels[::48, ::48], _image(seed))


def test_large_images_are_at_most_256_pixels_a_side(data):
  photo = np.asarray(Image.fromarray(_image(0)).resize((400, 300)))
  data = report.ReportData("run", 0, "today", generations=(
    report.Generation("a photo", photo),
  ))  # fmt: skip
  source, again = _Page(report.render_report(data)).values("img", "src")
  assert source == again
  head, _, code = source.partition(",")
  assert head == "data:image/jpeg;base64"
  found = Image.open(io.BytesIO(base64.b64decode(code)))
  assert found.size == (256, 192)


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
  assert "<b>green" not in html and "<u>red" not in html
  assert "circle <i>" not in html and "<Artist" not in html


def test_missing_values_are_dashes(data):
  html = report.render_report(data)
  assert "nan" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", html).lower()
  row = html[html.index('<th scope="row">CIDEr-D') :]
  cells = re.findall(r"<td[^>]*>(.*?)</td>", row[: row.index("</tr>")])
  assert [c.strip() for c in cells] == ["–"] * 4  # two steps, floor, bar
  assert '<span class="value">–</span>' in html  # GenEval counting


def test_only_the_latest_checkpoint_is_emphasised(data):
  html = report.render_report(data)
  cells = re.findall(r'<td class="latest">(.*?)</td>', html)
  assert cells == ["0.741", "12.2", "1.000", "–"]
  head = _between(html, "<thead>", "</thead>")
  head = re.findall(r"<th[^>]*>([^<]*)<", head)
  # A phone shows what stands beside the names.
  assert head == ["Metric", "2,600", "chance", "target", "1,300"]
  row = _between(html, '<th scope="row">overall', "</tr>")
  cells = re.findall(r"<td[^>]*>([^<]*)", row)
  assert cells == ["0.741", "0.090", "0.700 ", "0.500"]


def test_only_what_training_changes_has_an_arrow(data):
  html = report.render_report(data)

  def name(of):
    found = _between(html, f'<th scope="row">{of}', "</th>")
    return re.sub("<[^>]*>", "", found)

  assert [name(of) for of in ("overall", "distance", "detector")] == [
    "↑", "↓", ""
  ]  # fmt: skip


def test_pictures_come_first_then_tiles_curves_and_tables(data):
  html = report.render_report(data)
  order = ["<h1>", 'class="opening"', 'class="minis"', 'class="tiles"',
           "<nav>", 'id="curves"', 'id="scores"', 'id="geneval"',
           'id="generation"', 'id="what-ran"',
           'class="attribution"']  # fmt: skip
  places = [html.index(part) for part in order]
  assert places == sorted(places)
  assert html.count('class="tile card"') == 3


def test_tiles_say_unit_target_and_chance(data):
  html = report.render_report(data)
  first, second, third = html.split('<div class="tile card">')[1:]

  def text(tile):
    return " ".join(re.sub("<[^>]*>", " ", tile.partition("<nav")[0]).split())

  assert text(first) == (
    "GenEval &lt;all&gt; 0.74 of 1 chance 0.09 ✓ target ≥ 0.70"
  )
  assert 'style="width:74.1%"' in first and 'style="left:9.0%"' in first
  assert text(second) == "Ratio 1.45 × real ✗ target ≤ 1.20"
  assert "meter" not in second  # its scale has no end
  assert text(third) == "CIDEr-D 8.7 of 10 at step 1,300"
  assert 'style="width:87.1%"' in third


def test_a_cross_says_why_and_the_rule(data):
  html = report.render_report(data)
  gallery = _between(html, 'id="generation"', "</section>")
  assert "expected cross ≥ 2, found 1<br>and &lt;more&gt;" in gallery
  assert "not to be shown" not in html  # it is correct
  counting = _between(gallery, "<h3>counting", "<figure>")
  assert "exactly the number asked for" in counting
  rules = _between(html, 'class="rules"', "</details>")
  found = re.findall(r"<b>(.*?)</b>", rules)
  assert found == ["counting", "position"]  # those that were scored
  none = dataclasses.replace(data, geneval=(report.TaskBar("mean", 0.5),))
  assert "Where a tick" not in report.render_report(none)


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
  short = report.SampleRow("a cross", (None,))
  with pytest.raises(ValueError, match="'a cross' has 1 images for 2 steps"):
    report.render_report(dataclasses.replace(data, samples=(short,)))
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


def _between(html, start, end):
  _, _, tail = html.partition(start)
  part, found, _ = tail.partition(end)
  assert found, f"no {start} ... {end}"
  return part


def test_samples_over_steps_stand_in_their_columns(data):
  html = report.render_report(data)
  html = _between(html, '<table class="grid"', "</table>")
  assert re.findall(r'scope="col">([^<]*)<', html) == ["Prompt", "1,300",
                                                       "2,600"]  # fmt: skip
  cells = re.findall(r"<td>(.*?)</td>", html)
  assert [("<img" in c, "–" in c) for c in cells] == [
    (False, True), (True, False)
  ]  # fmt: skip
  assert 'class="mark yes"' in cells[1]


def test_a_true_picture_stands_beside_the_drawn_one():
  drawn = [
    report.Generation("a cat", _image(1), task="seen", truth=_image(2)),
    report.Generation("a dog", _image(3), task="free"),
  ]
  html = report_images.generations(drawn)
  seen, free = html.split("<h3>")[1:]
  assert seen.count("<img") == 2 and "true picture: a cat" in seen
  assert "the true picture beside it" in seen
  assert free.count("<img") == 1 and "true picture" not in free


def test_captions_of_a_group_are_sorted_by_their_score():
  captions = [
    report.Caption(_image(0), text, score=score, group=group)
    for text, score, group in (
      ("good", 9.5, "a"), ("unscored", None, "a"), ("bad", 0.0, "a"),
      ("other", 0.0, "b"), ("middling", 3.25, "a"),
    )
  ]  # fmt: skip
  data = report.ReportData("run", 0, "today", captions=tuple(captions))
  html = report.render_report(data)
  html = _between(html, 'id="captions">', "</section>")
  text = " ".join(_Page(html).text)
  order = ["bad", "middling", "good", "unscored", "other"]
  assert sorted(order, key=text.index) == order
  assert re.findall(r"CIDEr-D\s+(\d\S*)", text) == ["0.00", "3.25", "9.50",
                                                    "0.00"]  # fmt: skip
  several = report.Caption(_image(0), "x", ("one <i>", "two"))
  data = dataclasses.replace(data, captions=(several,))
  html = report.render_report(data)
  assert "<ul><li>one &lt;i&gt;</li><li>two</li></ul>" in html


def test_questions_stand_by_kind_with_their_marks(data):
  html = report.render_report(data)
  html = html[html.index('id="questions"') :]
  count = _between(html, "<h3>count", "<h3>")
  assert count.index("how many?") < count.index("how many more?")
  assert "<small>1 of 2 correct</small>" in count
  marks = re.findall(r"<img|aria-label=\"(\w+)\"", count)
  assert marks == ["", "incorrect", "", "correct"]
  assert "is it" not in count


def test_edits_stand_by_kind_with_how_many_were_done():
  rows = [("add", "add a star", True), ("remove", "remove a star", False),
          ("add", "add a moon", False)]  # fmt: skip
  edits = [
    report.EditSample(text, _image(1), _image(2), _image(3), done, kind)
    for kind, text, done in rows
  ]
  text = " ".join(_Page(report_images.edits(edits)).text)
  expected = ("add", "1 of 2 correct", "add a star", "source", "result",
              "target", "add a moon", "remove", "0 of 1 correct")  # fmt: skip
  at = -1
  for words in expected:
    at = text.index(words, at + 1)


def _points(svg):
  """Of each line, what it is drawn through."""
  return [
    [tuple(map(float, p.split())) for p in path.split("L")]
    for path in re.findall(r'class="smooth" d="M([^"]*)"', svg)
  ]


def test_score_chart_is_to_scale():
  curve = report.Curve("", (10, 20, 40), (0.25, math.nan, 0.75))
  chart = report.Chart("x", (curve,), floor=0.5)
  svg = report_charts.score_svg(chart, limits=(0.0, 1.0))
  ((a, b),) = _points(svg)  # the value that is missing is left out
  assert (a[0], b[0]) == (46, 500 - 14)
  floor = float(re.search(r'class="floor".*?y1="([^"]*)"', svg)[1])
  low, high = 250 - 30, 8  # the axis' ends
  assert a[1] == pytest.approx(low + 0.25 * (high - low), abs=0.06)
  assert b[1] == pytest.approx(low + 0.75 * (high - low), abs=0.06)
  assert floor == pytest.approx((low + high) / 2, abs=0.06)
  assert svg.count('class="dot"') == 2
  assert report_charts.score_svg(report.Chart("x", ())) == ""


def test_two_runs_share_one_axis():
  a = report.Curve("", (100, 200), (4.0, 2.0))
  b = report.Curve("", (200, 300), (3.0, 2.0))
  for svg in (
    report_charts.loss_svg([a, b]),
    report_charts.score_svg(report.Chart("x", (a, b))),
  ):
    (a0, a1), (b0, b1) = _points(svg)
    assert (a0[0], b1[0]) == (46, 500 - 14)  # from step 100 to step 300
    assert a1[0] == b0[0]  # both at step 200
    assert a1[1] == b1[1]  # both at a value of 2
    assert a0[1] < b0[1] < a1[1]  # 4 above 3 above 2
    assert svg.index('class="s0"') < svg.index('class="s1"')
  # A run without the loss keeps the other's colour.
  alone = report_charts.loss_svg([report.Curve("", (), ()), b])
  assert 'class="s1"' in alone and 'class="s0"' not in alone


def test_geneval_by_task_over_steps(data):
  curve = report.Curve("", (1, 2), (0.0, 1.0))
  bars = (
    report.TaskBar("counting", 1.0, 0.5, curve=curve),
    report.TaskBar("overall", 1.0, overall=True, curve=curve),
    report.TaskBar("colors", 0.1, group="Raw & own"),
  )
  html = report.render_report(
    dataclasses.replace(data, geneval=bars, progress=())
  )
  html = _between(html, 'id="geneval"', "</section>")
  assert html.count('class="bars card"') == 2
  assert "<h3>Raw &amp; own<small>" in html
  facets = _between(html, 'class="facets card"', "<h3>")
  assert re.findall(r"<figcaption>(.*?)<", facets) == ["counting"]
  ((low, high),) = _points(facets)
  assert (low[1], high[1]) == (130 - 30, 8)  # the scale is 0 to 1
  # The key to the floors belongs to bars that have one.
  assert html.index('class="key"') < html.index("Raw &amp; own")
  assert html.count('class="key"') == 1


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
