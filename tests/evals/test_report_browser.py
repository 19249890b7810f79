"""The pages as a browser lays them out, on a desk and on a phone."""

import shutil

import numpy as np
import pytest

from unifluid_jax.evals.report import comparison_page, page
from unifluid_jax.evals.report.types import (
  Caption,
  ComparedRow,
  Comparison,
  Generation,
  ReportData,
  RunGroup,
  SampleRow,
  ScoreRow,
  Tile,
)

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

LONG = "no_space_in_it_" * 10  # as paths in errors
DRAWN = Generation("a red circle", np.zeros((8, 8, 3), np.uint8), True, "one")


def report():
  steps = tuple(range(1000, 9000, 1000))
  return page.render_report(
    ReportData(
      "shapes", 8000, "today",
      tiles=tuple(
        Tile(f"Score {i}", 0.5, "of 1", end=1.0, floor=0.1, bar=0.4)
        for i in range(6)
      ),
      checkpoints=steps,
      scores=(
        ScoreRow("a metric with a long name", (0.5,) * 8, "group", floor=0.1),
      ),
      generations=(DRAWN,) * 20,
      captions=(Caption(DRAWN.image, LONG, (LONG, LONG)),),
      notes=(f"vqa failed at step 8000: {LONG}",),
    )
  )  # fmt: skip


def comparison():
  groups = tuple(
    RunGroup(f"a_long_name_of_run_{i}", (f"run_{i}_of_six",), 10)
    for i in range(6)
  )
  values = tuple((0.1 * i,) for i in range(6))
  return comparison_page.render(
    Comparison(groups, "today", scores=(ComparedRow("x", values),),
               notes=(LONG,), unpaired=f"{LONG} has no samples of step 10",
               samples=(SampleRow("a red circle", (DRAWN,) * 6),) * 5)
  )  # fmt: skip


@pytest.fixture(name="opened", scope="module")
def _opened():
  """Opens a page at a width, from its text alone, offline."""
  with sync_api.sync_playwright() as p:
    browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    context = browser.new_context(offline=True)

    def opened(html, width):
      tab = context.new_page()
      tab.set_viewport_size({"width": width, "height": 900})
      tab.set_content(html)
      return tab

    yield opened
    browser.close()


SIZES = "[document.documentElement.scrollWidth, innerWidth]"


@pytest.mark.parametrize("make", [report, comparison])
def test_a_phone_scrolls_tables_not_the_page(opened, make):
  tab = opened(make(), 390)
  assert tab.evaluate(SIZES) == [390, 390]
  for card in tab.query_selector_all(".scroll"):
    wide = "e => [e.scrollWidth, e.clientWidth]"
    inner, outer = card.evaluate(wide)
    assert inner > outer
    card.evaluate("e => e.scrollTo(9999, 0)")
    assert card.evaluate("e => e.scrollLeft") == inner - outer
    # Names stay; they and the first column of scores fit.
    first = card.query_selector('th[scope="row"]').bounding_box()
    assert first["x"] >= 0 and first["width"] < 200


def test_tiles_are_one_row_on_a_desk(opened):
  tab = opened(report(), 1400)
  assert tab.evaluate(SIZES) == [1400, 1400]
  tiles = [t.bounding_box() for t in tab.query_selector_all(".tile")]
  assert len(tiles) == 6 and len({t["y"] for t in tiles}) == 1
  picture = tab.query_selector(".opening img").bounding_box()
  assert picture["y"] < tiles[0]["y"] < 900  # both on the first screen
