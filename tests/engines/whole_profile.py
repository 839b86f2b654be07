"""``lengthwise profile`` of a whole vLLM on the CPU, in the environment of ``whole_environment``.

    python whole_profile.py            a sweep that is stopped and goes on; an engine that fails

The fit is left out, as its packages are not there.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(os.environ["LENGTHWISE_SITE"])  # what vLLM's environment lacks: pandas, numba

import pandas as pd

from lengthwise.errors import InputError
from lengthwise.serving.timing import measure, measure_vllm
from tests.engines.whole_engine import MODEL

SMALL = {"max_num_seqs": 8, "max_num_batched_tokens": 256, "max_model_len": 2048}


START = measure_vllm.start


class Enough(Exception):
    """Stops the sweep."""


def profile(out: Path, config: Path, stop_after: int | None = None) -> dict[str, Any]:
    """What would be fitted; ``Enough`` after so many groups."""
    found: dict[str, Any] = {}
    sweep, done = measure_vllm.sweep, [0]

    async def counted(engine: Any, plan: Any, seconds: float, **extra: Any) -> pd.DataFrame:
        if done[0] == stop_after:
            raise Enough
        done[0] += 1
        return await sweep(engine, plan, seconds, **extra)

    def built(name: str, rows: pd.DataFrame, clients: pd.DataFrame, about: Any) -> dict[str, Any]:
        found.update(rows=rows, clients=clients, about=about)
        return {"name": name, **about}

    import lengthwise.serving.timing.build as build

    build.build_profile = built  # type: ignore[assignment]
    measure._gpu = lambda *_: ("CPU", 16.0)  # type: ignore[assignment]
    measure_vllm.sweep = counted
    measure_vllm.start = partial(START, enforce_eager=True)  # compiling takes minutes
    measure_vllm.FRONTEND_LEVELS = (1, 4)
    try:
        measure.profile(
            model=str(config), out=out, thoroughness=0.02, seconds=1e6, **SMALL,
            say=lambda line: print(line, flush=True),
        )  # fmt: skip
    finally:
        measure_vllm.sweep = sweep
    return found


def main() -> None:
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        config, out = Path(folder) / "config.json", Path(folder) / "p.json"
        config.write_text(json.dumps(MODEL))
        try:
            profile(out, config, stop_after=3)
        except Enough:
            print("stopped", sorted(p.name for p in (Path(folder) / "p.parts").iterdir()))
        found = profile(out, config)
        rows = found["rows"]
        print(len(rows), "iterations;", sorted(rows["label"].unique()))
        inside = rows[rows["label"] >= 0]
        assert rows["schedule_ns"].is_monotonic_increasing
        assert inside["decode_seqs"].max() == 8, inside["decode_seqs"].max()
        assert (inside["prefill_tokens"] + inside["decode_seqs"]).max() == 256
        assert len(found["clients"]) == 16 + 5 and (found["clients"]["tokens"] == 48).all()
        assert not (Path(folder) / "p.parts").exists()
        config.write_text(json.dumps(MODEL | {"architectures": ["NoSuchForCausalLM"]}))
        for failing in ({"architectures": ["NoSuchForCausalLM"]}, {"num_hidden_layers": 40000}):
            config.write_text(json.dumps(MODEL | failing))
            try:
                profile(Path(folder) / "f.json", config)
            except InputError as error:
                print("refused:", error)
            else:
                raise AssertionError(f"{failing} was profiled")
            for path in (Path(folder) / "f.parts").iterdir():
                path.unlink()
            (Path(folder) / "f.parts").rmdir()


if __name__ == "__main__":
    main()
