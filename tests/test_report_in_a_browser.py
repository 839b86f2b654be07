"""The report in a real browser: wide and narrow, light and dark, by pointer and by keyboard."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from lengthwise.eval.compare import compare
from lengthwise.eval.publish import pick_timelines, publish
from lengthwise.eval.source import Spelled
from lengthwise.serving import Engine
from tests.browser import browser

WIDTHS = (1280, 820, 390)
FIGURES = {"trade": 2, "rates": 6, "cdf": 2, "timeline": 8}  # panels of each
# Set to a folder, screenshots of the whole page are kept there, to be looked at.
KEPT = os.environ.get("LENGTHWISE_SCREENSHOTS")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as made:
        yield made


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, engine = Spelled("azure-conv-2023", {"requests": 80}), Engine(max_num_seqs=8)
    found = compare(
        source, ("fcfs", "sjf", "srtf", "mlfq"), ("noisy-oracle:tau=0.5",), (2.0, 6.0), 2, engine,
        slo={"ttft": 1.0, "tpot": 0.05},
    )  # fmt: skip
    return publish(
        found, tmp_path_factory.mktemp("report") / "out", command="lengthwise compare " + "x" * 300,
        timelines=pick_timelines(found, source, engine), sections=[("More", "<p>details</p>")],
        lead="<p>Three sentences.</p>",
    )  # fmt: skip


def opened(chromium: Browser, report: Path, width: int = 1280, scheme: Any = "light") -> Page:
    """The report in a window; it says nothing on the console, and asks for nothing but itself."""
    context = chromium.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(f"asked for {request.url}"))
    page.goto(report.as_uri())
    assert said == [f"asked for {report.as_uri()}"]
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_is_whole_and_readable(
    chromium: Browser, report: Path, width: int, scheme: str
) -> None:
    page = opened(chromium, report, width, scheme)
    if KEPT:
        page.screenshot(path=Path(KEPT) / f"report-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
    seen = page.evaluate(
        """() => [...document.querySelectorAll("figure")].map((figure) => [
          figure.id,
          [...figure.querySelectorAll(".panel > svg")].map((svg) => {
            const box = svg.getBoundingClientRect();
            return [box.left, box.right, svg.querySelector("text").getBoundingClientRect().height];
          }),
        ])"""
    )
    assert {name: len(boxes) for name, boxes in seen} == FIGURES
    for _, boxes in seen:
        for left, right, text in boxes:
            assert 0 <= left < right - 280  # of a natural width of 310: text is not too small
            assert right <= width + 1
            assert text >= 9
    boxes = page.evaluate(
        """() => [...document.querySelectorAll(".scroll")]
          .filter((box) => !box.closest("details"))
          .map((box) => [box.scrollWidth, box.clientWidth])"""
    )
    assert len(boxes) == 2
    for needed, there in boxes:  # nothing to scroll for at 1280; in its own box elsewhere
        assert (needed <= there) is (width == 1280)
    beside = {round(left) for left, *_ in dict(seen)["rates"]}
    assert len(beside) == {1280: 3, 820: 2, 390: 1}[width]  # they stack
    ground = page.evaluate(
        "[...document.querySelectorAll('body, section, figure, .panel, .panel > svg, pre, table')]"
        ".map((e) => getComputedStyle(e).backgroundColor).filter((c) => !c.endsWith(', 0)'))"
    )
    light = [sum(map(int, colour[4:-1].split(","))) > 380 for colour in ground]
    assert set(light) == {scheme == "light"}  # no white slabs
    # axe says nothing of what is inside a picture, and looks at it for long
    judged = Axe().run(page, context={"exclude": [[".panel > svg > g"]]}).response
    problems = [(p["id"], [node["target"] for node in p["nodes"]]) for p in judged["violations"]]
    assert problems == []
    passed = {rule["id"] for rule in judged["passes"]}
    assert {"color-contrast", "svg-img-alt", "button-name", "heading-order"} <= passed
    page.context.close()


def test_series_are_hidden_and_shown_by_their_names(chromium: Browser, report: Path) -> None:
    page = opened(chromium, report)
    button = page.locator("#cdf .legend button").nth(1)
    drawn = page.locator("#cdf .panel .s1")
    assert drawn.count() == 2
    assert drawn.first.is_visible()
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert not any(part.is_visible() for part in drawn.all())
    assert page.locator("#rates .panel .s1").first.is_visible()  # of this figure alone
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert drawn.first.is_visible()


def test_points_tell_what_they_are(chromium: Browser, report: Path) -> None:
    page = opened(chromium, report)
    panel = page.locator("#rates .panel").first
    points = json.loads(page.locator("#rates script").text_content() or "")[0]
    tip = panel.locator(".tip")
    assert not tip.is_visible()
    key, x, y, text = points[-1]
    panel.scroll_into_view_if_needed()
    box = panel.locator("svg").bounding_box()
    assert box is not None
    scale = box["width"] / 309.6  # of the viewBox
    page.mouse.move(box["x"] + scale * x, box["y"] + scale * y)
    assert text in (tip.text_content() or "")
    assert panel.locator(f".{key}.on").count() > 0
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    panel.focus()
    seen = []
    for _ in points:
        page.keyboard.press("ArrowRight")
        seen.append(tip.text_content() or "")
    assert all(text in told for (*_, text), told in zip(points, seen, strict=True))
    inside = tip.bounding_box()
    assert inside is not None
    assert inside["x"] >= 0
    assert inside["x"] + inside["width"] <= 1280
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_tables_are_sorted_by_a_click(chromium: Browser, report: Path) -> None:
    page = opened(chromium, report)
    table = page.locator("table:has(tr.bound)").first
    head = table.locator("th").nth(2)

    def column() -> list[float]:
        cells = table.locator("tbody tr:not(.bound) td:nth-child(3)").all()
        return [float(cell.get_attribute("data-value") or "nan") for cell in cells]

    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column() == sorted(column())
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column() == sorted(column(), reverse=True)
    assert "lower bound" in (table.locator("tbody tr").last.text_content() or "")
