"""The app in headless Chromium: every tab, phone width, bad uploads."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from unifluid_jax.core import interrupt

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")

REPO = Path(__file__).parent.parent.parent
WAIT = 60_000  # ms; the machine may be busy


@pytest.fixture(scope="module")
def served(tmp_path_factory):
  """Its address; as users start it, and without the hooks of tests."""
  pytest.importorskip("gradio", reason="of the extra `app`")
  root = tmp_path_factory.mktemp("served")
  places = {name: root / name for name in ("home", "work", "tmp", "made")}
  for place in places.values():
    place.mkdir()
  env = dict(os.environ, PYTHONPATH=str(REPO), HOME=str(places["home"]),
             TMPDIR=str(places["tmp"]), GRADIO_SHARE="False")  # fmt: skip
  server = subprocess.Popen(
    [sys.executable, "-m", "tests.apps.runs", str(places["made"])],
    cwd=places["work"], env=env, stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  url = server.stdout.readline().strip()  # once it is ready
  assert url.startswith("http://127.0.0.1:"), url
  yield url
  assert list(places["tmp"].rglob("*.png"))  # what was drawn lies there
  server.send_signal(signal.SIGINT)
  assert server.wait(60) == interrupt.STATUS
  for name in ("home", "work", "tmp"):
    assert not [x for x in places[name].rglob("*") if x.is_file()], name


@pytest.fixture(scope="module")
def browser():
  sync = pytest.importorskip("playwright.sync_api")
  with sync.sync_playwright() as playwright:
    yield playwright.chromium.launch(
      executable_path=CHROMIUM, args=["--no-sandbox"]
    )


@pytest.fixture
def visit(browser, served):
  """Opens the page; afterwards nothing was asked of any other machine."""
  asked, pages = [], []

  def open_page(width, scheme):
    page = browser.new_page(
      viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    page.set_default_timeout(WAIT)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(served)
    page.wait_for_selector("#draw")
    pages.append(page)
    return page

  yield open_page
  for page in pages:
    page.close()
  local = ("data:", "blob:", served)
  assert asked and not [url for url in asked if not url.startswith(local)]


def tab(page, name):
  page.get_by_role("tab", name=name, exact=True).click()


def see(page, name):
  """Keeps a picture of the page where SCREENSHOTS says."""
  if folder := os.environ.get("SCREENSHOTS"):
    page.screenshot(path=f"{folder}/{name}.png", full_page=True)


@pytest.mark.parametrize("width, scheme", [(1400, "light"), (390, "dark")])
def test_a_visit(visit, served, tmp_path, width, scheme):
  page = visit(width, scheme)
  draw(page)
  redraw(page)
  ask(page, tmp_path)
  edit(page)
  compare(page)
  overflow = "document.documentElement.scrollWidth - innerWidth"
  assert page.evaluate(overflow) <= 0
  for name in ("Compare", "Edit", "Ask", "Redraw", "Draw"):
    tab(page, name)
    page.wait_for_timeout(100)
    see(page, f"{name.lower()}-{width}")
    assert page.evaluate(overflow) <= 0, name


def draw(page):
  """By keyboard alone: the prompt has the focus, Enter draws."""
  page.locator("#prompt textarea").focus()
  page.keyboard.type("a red <b>zebra")
  page.wait_for_selector("#unknown mark:has-text('zebra')")
  assert not page.locator("#unknown b").count()
  page.keyboard.press("Enter")
  page.wait_for_selector("#drawn-note:has-text('32 × 32 pixels, seed 0')")
  page.get_by_role("button", name="two green squares").click()
  page.wait_for_selector("#drawn-note:has-text('seed 9')")
  page.click("#another")
  page.wait_for_selector("#drawn-note:has-text('seed 10')")
  stage = page.locator("#stage input[type=range]")
  assert stage.get_attribute("max") == "4"
  whole = page.locator("#drawn img").get_attribute("src")
  stage.focus()
  page.keyboard.press("Home")
  page.wait_for_function(
    "src => document.querySelector('#drawn img').src != src", arg=whole
  )
  stage.focus()
  page.keyboard.press("End")


def redraw(page):
  tab(page, "Redraw")
  page.click("#redraw-take")
  page.wait_for_selector("#cells img")
  on = page.locator("#cells .grid span.on")
  cells = page.locator("#cells .grid span")
  assert cells.count() == 4 and on.count() == 0
  cells.nth(2).click()
  page.wait_for_function(
    "() => document.querySelectorAll('#cells .grid span.on').length == 2"
  )  # a cell and all after it: the run draws in raster order
  page.fill("#redraw-prompt textarea", "a red circle")
  page.click("#redraw")
  page.wait_for_selector("#redraw-note:has-text('2 of 4 cells drawn again')")
  board = page.locator("#cells [role=application], #cells[role=application]")
  board.first.focus()
  page.keyboard.press("Escape")
  page.wait_for_function(
    "() => !document.querySelectorAll('#cells .grid span.on').length"
  )
  page.keyboard.press("ArrowRight")
  page.keyboard.press(" ")
  page.wait_for_function(
    "() => document.querySelectorAll('#cells .grid span.on').length == 3"
  )
  page.locator("[aria-label=Model]:visible").first.click()
  page.get_by_role("option", name="two", exact=True).click()
  page.wait_for_function(
    "() => !document.querySelectorAll('#cells .grid span.on').length"
  )  # the board is that of the run that is chosen
  assert cells.count() == 4


def ask(page, tmp_path):
  tab(page, "Ask")
  bad = tmp_path / "bad.png"
  bad.write_bytes(b"no image at all")
  page.set_input_files("#asked input[type=file]", str(bad))
  toast = page.locator(".toast-body").first
  toast.wait_for()
  assert "This picture cannot be used" in toast.inner_text()
  assert "Traceback" not in page.content()
  page.locator(".toast-close").first.click()
  toast.wait_for(state="detached")
  page.click("#ask-take")
  page.wait_for_selector("#seen img")
  page.click("#describe")
  page.wait_for_selector("#chat .bot:has-text('yes')")
  page.fill("#question textarea", "what colour is the circle " * 9)
  page.wait_for_selector("#unknown-question:has-text('too long')")
  page.fill("#question textarea", "what colour is the circle")
  page.keyboard.press("Enter")
  page.wait_for_selector("#chat .user:has-text('what colour is the circle')")


def edit(page):
  tab(page, "Edit")
  page.click("#edit-take")
  page.wait_for_selector("#before img")
  page.fill("#instruction textarea", "change it to blue " * 9)
  page.wait_for_selector("#unknown-instruction:has-text('too long')")
  page.fill("#instruction textarea", "change it to blue")
  page.click("#edit")
  page.wait_for_selector("#edit-note:has-text('Seed 0')")
  assert page.locator("#after img").count() == 1


def compare(page):
  tab(page, "Compare")
  page.fill("#compare-prompt textarea", "a red circle")
  page.click("#compare")
  for i, name in enumerate(("one", "two")):
    page.wait_for_selector(f"#compared-note-{i}:has-text('seed 0')")
    label = page.locator(f"#compared-{i}").inner_text()
    assert re.search(rf"{name} \(unifluid\)", label)
