"""What mkdocs calls while it builds the site: pages that are made, and links that leave docs/."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.site import catalogue, commands, diagram, notebooks

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "https://github.com/lengthwise/lengthwise/blob/main/"
# Files beside docs/ that are pages of the site.
ROOT_PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
FOLDERS: dict[str, Callable[[], Mapping[str, str | bytes]]] = {
    "policies/": catalogue.policies,
    "routers/": catalogue.routers,
    "predictors/": catalogue.predictors,
    "environments/": catalogue.environments,
    "commands/": commands.pages,
    "notebooks/": notebooks.pages,
}
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
made: dict[str, str | bytes] = {}  # page or picture -> what is in it


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Makes the pages, and puts them where the navigation names their folder."""
    made.clear()
    for name, page in ROOT_PAGES.items():
        made[page] = (ROOT / name).read_text("utf-8")
    folders: dict[str, list[str]] = {}
    for folder, pages in FOLDERS.items():
        found = pages()
        made.update(found)
        folders[folder] = [page for page in found if page.endswith(".md")]
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    folders["decisions/"] = [f"decisions/{path.name}" for path in decisions]
    papers = sorted((ROOT / "docs" / "papers").glob("*.md"), key=lambda path: path.stem != "index")
    folders["papers/"] = [f"papers/{path.name}" for path in papers]
    config.nav = _filled(config.nav, folders)
    (how_to,) = (item["How to"] for item in config.nav if "How to" in item)
    pages = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    how_to += sorted(set(pages) - set(_named(config.nav)))
    return config


def _named(nav: Any) -> Iterator[str]:
    """The pages that stand in a navigation."""
    if isinstance(nav, str):
        yield nav
        return
    for item in nav.values() if isinstance(nav, dict) else nav:
        yield from _named(item)


def _filled(nav: Any, folders: Mapping[str, list[str]]) -> Any:
    if isinstance(nav, list):
        return [_filled(item, folders) for item in nav]
    if isinstance(nav, dict):
        return {title: _filled(inner, folders) for title, inner in nav.items()}
    return folders.get(nav, nav)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what ``on_config`` made."""
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files beside docs/ lead to their page, or to the source where they have none."""
    here = posixpath.dirname(page.file.src_uri)
    home = {page: name for name, page in ROOT_PAGES.items()}.get(page.file.src_uri)

    def led(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        if "://" in target or target.startswith("mailto:"):
            return match.group()
        # where the link leads from the root of the repository
        beside = home is not None or here == "notebooks"
        folder = ("" if home is not None else here) if beside else posixpath.join("docs", here)
        path = posixpath.normpath(posixpath.join(folder, target))
        if path.startswith("docs/"):
            found = path.removeprefix("docs/")
        elif path in ROOT_PAGES:
            found = ROOT_PAGES[path]
        elif path == "README.md":
            found = "index.md"
        elif path.endswith(".ipynb"):
            found = path.removesuffix(".ipynb") + ".md"
        elif (ROOT / path).exists():
            return before + SOURCE + path + after
        else:
            return match.group()  # mkdocs says that it leads nowhere
        return before + os.path.relpath(found, here or ".").replace(os.sep, "/") + after

    return LINK.sub(led, diagram.drawn(text))
