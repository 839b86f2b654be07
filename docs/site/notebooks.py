"""The notebooks as pages: their text, code and what came of it as it is committed."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"


def pages() -> dict[str, str | bytes]:
    """Page or picture -> what is in it; the first page lists the others with their first words."""
    found: dict[str, str | bytes] = {}
    rows = []
    for path in sorted(FOLDER.glob("*.ipynb")):
        parts: list[str] = []
        for number, cell in enumerate(json.loads(path.read_text("utf-8"))["cells"], 1):
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                parts.append(source)
                continue
            parts.append(f"```python\n{source}\n```")
            for output in cell["outputs"]:
                picture = output.get("data", {}).get("image/png")
                if picture is None:
                    parts.append(_output(output))
                else:
                    name = f"{path.stem}-{number}.png"
                    found[f"notebooks/{name}"] = base64.b64decode("".join(picture))
                    parts.append(f"![What cell {number} draws, as the text says]({name})")
        text = "\n\n".join(parts) + "\n"
        found[f"notebooks/{path.stem}.md"] = text
        title, about = re.findall(r"^# (.+)\n\n(.+(?:\n.+)*)", text)[0]
        rows.append(f"## [{title}]({path.stem}.md)\n\n{about}\n")
    first = (
        "# Notebooks\n\nEach is run from top to bottom by the test command. They lie in the "
        f"repository's `notebooks/`.\n\n{chr(10).join(rows)}"
    )
    return {"notebooks/index.md": first, **found}


def _output(output: dict[str, Any]) -> str:
    """What a cell gave, in the form that says most."""
    if output["output_type"] == "stream":
        return f"```text\n{''.join(output['text']).rstrip()}\n```"
    data = output["data"]
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    if "text/html" in data:
        html = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
        html = html.replace('<table border="1" class="dataframe">', "<table>")
        return re.sub(r"\n\s*\n", "\n", html)
    return f"```text\n{''.join(data['text/plain'])}\n```"
