"""The site builds, strictly and without the network, and its pages say what the registry says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Any
from xml.etree import ElementTree

import click
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from docs.site import diagram, examples
from lengthwise import registry
from lengthwise.training.cli import COMMANDS, cli
from tests.browser import browser
from tests.test_docs_readme import judged_command

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "policy": "policies", "router": "routers", "predictor": "predictors", "env": "environments",
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "all_proxy")}
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    yield folder


class Fetched(HTMLParser):
    """What a browser fetches when it opens a page, and what stands in for a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.silent: list[str] = []  # pictures without words

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.found.append(given.get("src") or "")
        if tag == "link" and given.get("rel") in ("stylesheet", "preconnect", "preload", "icon"):
            self.found.append(given.get("href") or "")
        if tag == "img" and not given.get("alt"):
            self.silent.append(str(given.get("src")))


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 80
    for page in pages:
        reader = Fetched()
        reader.feed(page.read_text("utf-8"))
        assert not [url for url in reader.found if re.match(r"(https?:)?//", url)], page
        assert not reader.silent, page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", sheet.read_text("utf-8")), sheet


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_name_has_its_page(site: Path, kind: str) -> None:
    for name in registry.names(kind):
        page = site / FOLDERS[kind] / f"{name.removeprefix('lengthwise/').lower()}.html"
        text = page.read_text("utf-8")
        assert f"<title>{name} - lengthwise</title>" in text
        assert 'class="small"' in text or "what the others are compared with" in text


def test_the_pages_of_policies_say_features_tunables_and_ranges(site: Path) -> None:
    for kind in ("policy", "router"):
        for name in registry.names(kind):
            score = registry.load(kind, name).score
            text = (site / FOLDERS[kind] / f"{name}.html").read_text("utf-8")
            for feature in score.features:
                assert f"<code>{feature}</code>" in text
            for tunable, default in score.tunables.items():
                row = f"<td><code>{tunable}</code></td>\n<td>{default}</td>\n<td>"
                assert row + str(score.ranges.get(tunable, "True or False")) in text


CHART = """flowchart TD
    %% row: a . b
    %% row: c d .
    %% alt: A leads to
    %% alt: all others.
    subgraph top["What is <above>"]
        a["a/<br/>first"]
        b["b.py<br/>second"]
    end
    c["c<br/>third"] --> d["d<br/>fourth"]
    a -- "two words" --> c & d
    b -. dotted .-> d
    d -- back --> b
"""


def test_flowcharts_are_drawn_from_their_text() -> None:
    chart = diagram.read(CHART)
    assert chart.labels == dict(
        zip("abcd", ("a/<br/>first", "b.py<br/>second", "c<br/>third", "d<br/>fourth"), strict=True)
    )
    assert chart.frames == {"top": ("What is <above>", ["a", "b"])}
    assert chart.edges == [
        ("c", "d", "", False), ("a", "c", "two words", False), ("a", "d", "two words", False),
        ("b", "d", "dotted", True), ("d", "b", "back", False),
    ]  # fmt: skip
    drawn = diagram.drawn(f"before\n```mermaid\n{CHART}```\nafter\n")
    assert drawn.startswith("before\n<div") and drawn.endswith("</div>\nafter\n")
    svg = ElementTree.fromstring(drawn.removeprefix("before\n").removesuffix("\nafter\n"))[0]
    assert svg.get("aria-label") == "A leads to all others."
    texts = [text.text for text in svg.iter("text")]
    assert sorted(texts) == sorted([
        "a/", "first", "b.py", "second", "c", "third", "d", "fourth", "What is <above>",
        "two words", "two words", "dotted", "back",
    ])  # fmt: skip
    boxes = [rect for rect in svg.iter("rect") if rect.get("class") == "box"]
    corners = [(float(box.get("x", 0)), float(box.get("y", 0))) for box in boxes]
    assert corners[0][1] == corners[1][1] < corners[2][1] == corners[3][1]  # two rows
    assert corners[0][0] == corners[2][0] < corners[3][0] < corners[1][0]  # three columns
    for wrong in ("a ==> b", 'e["nowhere<br/>placed"]'):
        with pytest.raises(ValueError, match=r"not understood|rows place"):
            diagram.read(f"{CHART}    {wrong}\n")


def test_the_house_is_drawn_as_it_is(site: Path) -> None:
    (source,) = diagram.BLOCK.findall((ROOT / "docs" / "architecture.md").read_text("utf-8"))
    chart = diagram.read(source)
    names = {node: label.partition("<br/>")[0] for node, label in chart.labels.items()}
    under = {node: frame for frame, (_, inside) in chart.frames.items() for node in inside}
    folder = {"vocabulary": "lengthwise", "serving": "serving"}
    paths = {ROOT / folder.get(under.get(node, ""), ".") / name for node, name in names.items()}
    assert [path for path in paths if not path.exists()] == []
    rooms = {path for path in (ROOT / "serving").iterdir() if (path / "__init__.py").exists()}
    parts = {ROOT / name for name in ("predictors", "policies", "envs", "eval", "training")}
    assert {*rooms, *parts} <= paths
    text = (site / "architecture.html").read_text("utf-8")
    assert all(f">{name}</text>" in text for name in names.values())
    assert "flowchart TD" not in text


def test_every_option_of_every_command_is_there(site: Path) -> None:
    def options(command: click.Command) -> list[str]:
        inner = command.commands.values() if isinstance(command, click.Group) else ()
        own = [o for p in command.params for o in p.opts if o.startswith("--")]
        return own + [option for one in inner for option in options(one)]

    context = click.Context(cli)
    for name in COMMANDS:
        text = (site / "commands" / f"{name}.html").read_text("utf-8")
        command = cli.get_command(context, name)
        assert command is not None
        assert [option for option in options(command) if option not in text] == []
        assert 'id="an-example"' in text, f"docs/site/examples.py has no example of {name}"
        assert "\\&lt;" not in text  # Markdown escapes no such


def test_the_examples_of_commands_print_what_is_shown(tmp_path: Path) -> None:
    """Those that take a second or two; numbers to a tenth, what is measured there."""
    examples.files(tmp_path)
    shown = examples.kept()
    assert list(shown) == list(examples.EXAMPLES)
    for name in ("list", "simulate", "train", "evaluate", "export", "check", "completion"):
        printed, before = (
            re.split(r"(?<![\w.])(\d[\d,]*(?:\.\d+)?)", text)
            for text in (examples.printed(examples.EXAMPLES[name], tmp_path), shown[name])
        )
        words, words_before = (" ".join("".join(one[::2]).split()) for one in (printed, before))
        assert words == words_before, name
        assert [float(one.replace(",", "")) for one in printed[1::2]] == pytest.approx(
            [float(one.replace(",", "")) for one in before[1::2]], rel=0.1, abs=0.02
        ), name
    typed = [*examples.EXAMPLES.values(), *(words for words, _ in examples.ELSEWHERE.values())]
    for words in typed:
        judged_command(shlex.split(words))


# In a browser


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as made:
        yield made


@pytest.mark.parametrize(
    "page", ["index.html", "start/does-it-pay.html", "policies/srtf.html", "architecture.html"]
)
def test_pages_are_readable_wide_and_narrow_light_and_dark(
    chromium: Browser, address: str, page: str
) -> None:
    for width, scheme in product((1280, 820, 390), ("light", "dark")):
        context = chromium.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # type: ignore[arg-type]
        )
        shown = context.new_page()
        said: list[str] = []
        shown.on("console", lambda message, said=said: said.append(message.text))
        shown.on("pageerror", lambda error, said=said: said.append(str(error)))
        shown.goto(f"{address}/{page}")
        ground = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) > 380) == (scheme == "light")
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        # landmarks of the theme's own share names: the menu's lists, the buttons that copy code
        looked = Axe().run(shown).response["violations"] if width != 820 else []
        found = [
            (rule["id"], [node["target"] for node in rule["nodes"]])
            for rule in looked
            if rule["id"] != "landmark-unique"
        ]
        assert (found, said) == ([], [])
        context.close()
