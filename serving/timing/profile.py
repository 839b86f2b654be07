"""Timing profiles: what was measured on a GPU under a real engine, as a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.errors import InputError
from lengthwise.protocols import Batch
from lengthwise.serving.timing.model import PS, TimingTables

FORMAT = "lengthwise-timing-profile"
FORMAT_VERSION = 1
_TERMS = (
    "prefill_seq_s",
    "decode_seq_s",
    "context_s",
    "mixed_context_s",
    "chunk_context_s",
    "floor_s",
    "floor_seq_s",
    "arrival_latency_s",
    "output_latency_s",
)


@dataclass(frozen=True)
class ProfileTiming:
    """A fitted profile: knots of the two tables, in seconds, and the linear terms.

    ``decode`` has one knot a CUDA-graph batch size: a batch runs padded to the next of them, and
    costs ``decode_pad_seq_s`` more a sequence that is really there. Between knots of ``mixed``,
    and beyond the last knot of either, the time is interpolated linearly.
    """

    name: str
    num_gpu_blocks: int | None
    decode: tuple[tuple[int, float], ...]
    mixed: tuple[tuple[int, float], ...]
    decode_pad_seq_s: float
    terms: Mapping[str, float]
    about: Mapping[str, Any]

    def tables(self, max_num_batched_tokens: int, max_num_seqs: int) -> TimingTables:
        """The integer form, for batches up to the given sizes."""
        seqs = np.arange(max_num_seqs + 1)
        sizes = np.array([size for size, _ in self.decode])
        padded = np.append(sizes, np.inf)[np.searchsorted(sizes, seqs)]
        decode_s = _line(self.decode, np.where(np.isfinite(padded), padded, seqs))
        decode_s = decode_s + self.decode_pad_seq_s * seqs
        mixed_s = _line(self.mixed, np.arange(max_num_batched_tokens + 1))
        return TimingTables(
            decode_ps=np.rint(decode_s * PS).astype(np.int64),
            mixed_ps=np.rint(mixed_s * PS).astype(np.int64),
            **{term[:-1] + "ps": round(self.terms.get(term, 0.0) * PS) for term in _TERMS},
        )

    def iteration_time(self, batch: Batch) -> float:
        """Seconds that an iteration with this batch takes."""
        tokens = batch.prefill_tokens + batch.decode_seqs
        return self.tables(tokens, batch.decode_seqs).iteration_ps(batch) / PS


def read_profile(path: Path, engine_version: str | None = None) -> ProfileTiming:
    """The profile in a file; refused if measured on another version than ``engine_version``."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the profile {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"the profile {path} is not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{path} is no timing profile: its format is not {FORMAT!r}")
    if data.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"the profile {path} has format version {data.get('format_version')!r}; "
            f"this lengthwise reads version {FORMAT_VERSION}"
        )
    measured = data["engine"]["version"]
    if engine_version is not None and engine_version != measured:
        raise InputError(
            f"the profile {data['name']} was measured on {data['engine']['name']} {measured}, "
            f"not on {engine_version}; profile that version with `lengthwise profile`"
        )
    fit = data["fit"]
    return ProfileTiming(
        name=data["name"],
        num_gpu_blocks=data["num_gpu_blocks"],
        decode=tuple((int(n), float(s)) for n, s in fit["decode"]),
        mixed=tuple((int(n), float(s)) for n, s in fit["mixed"]),
        decode_pad_seq_s=float(fit.get("decode_pad_seq_s", 0.0)),
        terms={key: float(value) for key, value in fit["terms"].items()},
        about={key: value for key, value in data.items() if key != "fit"},
    )


def _line(knots: tuple[tuple[int, float], ...], at: Any) -> Any:
    """Linear interpolation between knots; beyond the last, the line through the last two."""
    x = np.array([float(n) for n, _ in knots])
    y = np.array([s for _, s in knots])
    inside = np.interp(at, x, y)
    if len(x) == 1:
        return inside
    slope = max((y[-1] - y[-2]) / (x[-1] - x[-2]), 0.0)
    return inside + slope * np.maximum(np.asarray(at, dtype=float) - x[-1], 0.0)
