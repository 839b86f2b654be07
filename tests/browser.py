"""A Chromium for tests: the machine's own, or one from npm's registry, which needs no root."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright._impl._driver import compute_driver_executable
from playwright.sync_api import Browser, sync_playwright

from lengthwise.serving.vllm import environment

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKED = ("@sparticuz/chromium", "153.0.0")  # MIT; 70 MB, with the libraries that it needs
UNPACK = """
const fs = require("fs"), zlib = require("zlib");
for (const name of ["chromium", "al2023.tar", "fonts.tar"])
  fs.writeFileSync(name, zlib.brotliDecompressSync(fs.readFileSync(`package/bin/${name}.br`)));
"""
# theirs names folders of another machine, where no text would be as high as a pixel
FONTS = (
    '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">'
    "<fontconfig><dir>{0}/fonts</dir><cachedir>{0}/cache</cachedir></fontconfig>"
)
MISSING = (
    "no browser: install one (apt-get install chromium, or playwright install chromium), "
    f"or npm, which fetches {'@'.join(PACKED)}"
)


def node() -> str:
    """The node that playwright brings."""
    return str(compute_driver_executable()[0])


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium; the test is skipped, saying how to get one, where there is none."""
    with sync_playwright() as playwright:
        path, libraries = _find(playwright.chromium.executable_path)
        # containers often run as root and without the kernel's namespaces: pages are ours alone
        made = playwright.chromium.launch(
            executable_path=path, env={**os.environ, **libraries}, args=["--no-sandbox"]
        )
        yield made
        made.close()


def _find(own: str) -> tuple[str, dict[str, str | float | bool]]:
    for path in (*map(shutil.which, NAMES), own if Path(own).is_file() else None):
        if path is not None:
            return path, {}
    root = environment.cache_folder().with_name("browsers")
    root.mkdir(parents=True, exist_ok=True)
    folder = root / "-".join((PACKED[0].replace("/", "-").strip("@"), PACKED[1]))
    with environment._locked(root / "lock"):
        if not folder.is_dir():
            _fetch(folder)
    return str(folder / "chromium"), {
        "LD_LIBRARY_PATH": str(folder / "lib"), "FONTCONFIG_PATH": str(folder / "fonts"),
    }  # fmt: skip


def _fetch(folder: Path) -> None:
    npm = shutil.which("npm")
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    asked = [npm or "npm", "pack", "--silent", "@".join(PACKED)]
    try:
        subprocess.run(asked, cwd=part, check=True, capture_output=True, timeout=300)
    except (OSError, subprocess.SubprocessError):  # no npm, no network, or one too slow
        pytest.skip(MISSING)
    (packed,) = part.glob("*.tgz")
    with tarfile.open(packed) as tar:
        tar.extractall(part, filter="data")
    subprocess.run([node(), "-e", UNPACK], cwd=part, check=True, timeout=300)
    for name, to in (("al2023", part), ("fonts", part / "fonts")):  # libraries lie in lib/
        with tarfile.open(part / f"{name}.tar") as tar:
            tar.extractall(to, filter="data")
    (part / "fonts" / "fonts.conf").write_text(FONTS.format(folder / "fonts"))
    (part / "chromium").chmod(0o755)
    packed.unlink()
    part.rename(folder)
