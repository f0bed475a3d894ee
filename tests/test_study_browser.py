"""A whole reader study in headless Chromium, by keyboard and mouse; takes about a minute, skips without Chromium."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from browser import chromium
from study_folders import write_study
from study_server import Server

from medsyn.cli import main
from medsyn.volume import Volume

pytestmark = pytest.mark.slow
pytest.importorskip("selenium", reason="selenium is not installed")

NOTE = "<img src=x onerror=alert(1)> a note"
LOADED = (
    "return !document.getElementById('item').hidden && !document.getElementById('images').classList.contains('loading')"
)
SECONDS = 120
"""Longest wait for the page: WebGL is drawn by the processor, which other tests use too."""


def octant(seed: int) -> Volume:
    """Return air, but for the left anterior superior eighth, which is as dense as bone."""
    array = np.full((24, 24, 24), -1000, np.int16)
    array[12:, 12:, 12:] = 1000
    array[0, 0, seed] = 0  # each a file of its own
    return Volume(array, (8.0, 8.0, 8.0))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser") / "study"
    write_study(folder, volumes=[octant(seed) for seed in range(6)], num_items=4)
    server = Server(folder)
    yield server
    server.kill()


class Page:
    """The reader's page in a browser."""

    def __init__(self, browser, link: str) -> None:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.ui import WebDriverWait

        self.browser, self._by = browser, By.CSS_SELECTOR
        # While the page draws itself anew, an element may be gone or not there yet.
        gone = (StaleElementReferenceException, ValueError)
        self._wait = WebDriverWait(browser, SECONDS, ignored_exceptions=gone)
        browser.set_script_timeout(SECONDS)
        browser.get(link)
        self.until(lambda: self.all("#text .buttons button"))

    def until(self, condition) -> None:
        self._wait.until(lambda _: condition())

    def all(self, selector: str) -> list:
        return [found for found in self.browser.find_elements(self._by, selector) if found.is_displayed()]

    def one(self, selector: str):
        (found,) = self.all(selector)
        return found

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def until_item(self, title: str) -> None:
        self.until(lambda: self.browser.execute_script(LOADED) and self.text("#progress-text") == title)

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def drag(self, selector: str, onto: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser).click_and_hold(self.one(selector)).move_to_element(
            self.one(onto)
        ).release().perform()

    def submit_by_key(self) -> None:
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        ActionChains(self.browser).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_reader_goes_through_the_whole_study(server, tmp_path):
    with chromium() as browser:
        page = Page(browser, server.links()["R02"])
        _practice(page)
        _recognise_with_a_note(page)
        _rank_with_a_reload(page)
        page.until_item("Item 3 of 4")
        page.press("4")
        page.submit_by_key()
        page.until_item("Item 4 of 4")
        _change_the_previous_answer(page)
        page.press("3")
        page.submit_by_key()
        page.until(lambda: page.all("#text h2") and page.text("#text h2") == "All items are answered")
        page.all("#text .buttons button")[0].click()
        page.until(lambda: page.text("#text h2") == "Thank you")
        assert page.errors() == []
    out = tmp_path / "answers.csv"
    assert main(["study", "export", str(server.folder), "--out", str(out)]) == 0
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [row["answer"] for row in rows if row["task"] == "recognition"] == ["other", "consolidation", "cardiomegaly"]
    assert [row["rank"] for row in rows if row["task"] == "ranking"] == ["1", "1", "4", "3"]
    assert next(row["note"] for row in rows if row["position"] == "1") == NOTE
    assert all(0 < float(row["seconds"]) < SECONDS * 4 for row in rows)


def _practice(page: Page) -> None:
    """Try the display on the practice items; undo; answer by number keys."""
    page.one("#text .buttons button").click()
    page.until_item("Practice 1 of 2")
    assert page.text("#slice-text") == "axial 12/24"
    page.press("\ue015", "\ue015")  # arrow down, towards the feet
    page.until(lambda: page.text("#slice-text") == "axial 14/24")
    page.press("m")
    page.until(lambda: page.one("#level").get_property("value") == "40")
    page.press("c")
    page.until(lambda: page.text("#slice-text").startswith("coronal"))
    page.press("1", "3", "u")
    assert page.one("input[name=option]:checked").get_attribute("value") == "consolidation"
    page.press("p")
    assert page.one("#pause").is_displayed()
    page.one("#resume").click()
    page.submit_by_key()
    page.until_item("Practice 2 of 2")
    assert not page.one("#submit").is_enabled()
    page.press("1", "3", "2", "4")
    assert [chip.text for chip in page.all(".slot .chip")] == ["A", "C", "B", "D"]
    page.one("#submit").click()


def _recognise_with_a_note(page: Page) -> None:
    """Choose by mouse, where the option needs a note."""
    page.until_item("Item 1 of 4")
    page.all(".option")[4].click()
    assert not page.one("#submit").is_enabled()
    page.one("#note").send_keys(NOTE)  # its letters are no shortcuts here
    page.one("#submit").click()


def _rank_with_a_reload(page: Page) -> None:
    """Drag two letters into one rank, reload, find them there, and give the others by mouse and key."""
    page.until_item("Item 2 of 4")
    page.drag(".chip[data-index='0']", ".slot[data-rank='1']")
    page.drag(".chip[data-index='1']", ".slot[data-rank='1']")
    assert [chip.text for chip in page.all(".slot[data-rank='1'] .chip")] == ["A", "B"]
    page.browser.refresh()
    page.until(lambda: page.all("#text .buttons button"))
    assert page.text("#text h2") == "Welcome back"
    page.one("#text .buttons button").click()
    page.until_item("Item 2 of 4")
    assert [chip.text for chip in page.all(".slot[data-rank='1'] .chip")] == ["A", "B"]
    page.all(".rank")[2].find_elements("css selector", "label")[3].click()
    page.press("\ue014", "3")  # arrow right: CT D; it does not move the rank that was clicked
    page.submit_by_key()


def _change_the_previous_answer(page: Page) -> None:
    """Go back, choose another option, come forth again."""
    page.one("#previous").click()
    page.until_item("Item 3 of 4")
    assert page.one("input[name=option]:checked").get_attribute("value") == "no_abnormality"
    page.press("1")
    page.submit_by_key()
    page.until_item("Item 4 of 4")


@pytest.mark.parametrize(("width", "height", "mobile"), [(1280, 900, False), (390, 844, True)])
def test_sides_are_where_the_letters_say_and_nothing_is_wider_than_the_window(server, width, height, mobile):
    from PIL import Image

    with chromium(width, height, mobile=mobile) as browser:
        page = Page(browser, server.links()["R01"])
        page.one("#text .buttons button").click()
        page.until_item("Practice 1 of 2")
        page.press("x")  # no lines over the pixels that are looked at
        page.until(lambda: len(page.all(".sides span")) == 12)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("L")
        boxes = browser.execute_script(
            "return [...document.querySelectorAll('.sides span')].map((letter) =>"
            " [letter.textContent, letter.getBoundingClientRect().x, letter.getBoundingClientRect().y])"
        )
        for view, bright in enumerate(("right top", "right top", "left top")):
            (_, left, _), (_, right, _), (_, _, top), (_, _, bottom) = boxes[4 * view : 4 * view + 4]
            for across in ("left", "right"):
                for up in ("top", "bottom"):
                    x = left + (right - left) * (0.3 if across == "left" else 0.75)
                    y = top + (bottom - top) * (0.3 if up == "top" else 0.75)
                    assert (picture.getpixel((round(x), round(y))) > 128) == (f"{across} {up}" == bright), (view, x, y)
        assert [box[0] for box in boxes] == list("RLAPRLSIAPSI")
