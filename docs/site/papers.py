"""One page a reproduced table, as its command prints it: ``python -m docs.site.papers [NAME...]``.

The pages lie in docs/papers, so that they can be read without the site; a run takes minutes.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from lengthwise.eval.reproduce import PAPERS, about, reproduce
from lengthwise.eval.reproductions.table import Reproduction
from lengthwise.eval.terminal import reproduction_view
from lengthwise.writing import whole_file

FOLDER = Path(__file__).resolve().parents[1] / "papers"
WIDTH = 120
MADE = "28 November 2026"


def page(name: str, found: Reproduction) -> str:
    """The page of a paper's table."""
    screen = Console(width=WIDTH, no_color=True, highlight=False)
    with screen.capture() as capture:
        screen.print(reproduction_view(replace(found, differs=(), source="", why="")))
    table = "\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines())
    differs = "\n".join(f"- {text}" for text in found.differs)
    return f"""# {found.title}

Theirs: {found.source}.

<!-- not run: it takes minutes -->
```
lengthwise reproduce {name}
```

prints ({MADE}; five seeds, 95% intervals, ratios paired by seed)

<!-- not run: it takes minutes -->
```text
{table}
```

**Why ours is another.** {found.why}

What differs:

{differs}
"""


def index() -> str:
    """The page that lists the others."""
    rows = "\n".join(f"| [{name}]({name}.md) | {what} |" for name, what in about().items())
    return f"""# Published tables, ours beside theirs

`lengthwise reproduce` lists them, `lengthwise reproduce NAME` runs one in about a minute on two
cores, with `--seeds`, `--out`, `--json` and `--csv` as everywhere. Each stands in
`eval/reproductions/`: the published numbers, the runs that are ours, and why the two differ.
Regimes are those that the papers state (model, GPU, load). Where they leave one open (FastServe's
batch, TRAIL's cache, HRRN's traffic, UniBoost's trace), a few were tried, and the pages show those
around theirs; no number was fitted. Past-Future's limits and loads were chosen after looking, as
its page says. Sections are cited from summaries where a paper's text was not at hand.

| | |
|---|---|
{rows}
| [intelligent-router](../intelligent-router.md) | Intelligent Router: learned routers |
"""


def main() -> None:
    """Writes the index, and the pages of the papers that are named, or of all."""
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or PAPERS:
        text = page(name, reproduce(name, processes=2))
        with whole_file(FOLDER / f"{name}.md") as fresh:
            fresh.write_text(text, "utf-8")
        print(f"wrote {FOLDER / f'{name}.md'}", flush=True)
    with whole_file(FOLDER / "index.md") as fresh:
        fresh.write_text(index(), "utf-8")


if __name__ == "__main__":
    main()
