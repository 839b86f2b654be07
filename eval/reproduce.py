"""Published tables, ours beside theirs, as far as the papers say how they were made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import getdoc
from typing import Any

from lengthwise.errors import UnknownNameError
from lengthwise.eval.cells import Cells
from lengthwise.eval.reproductions.clairvoyant import clairvoyant
from lengthwise.eval.reproductions.fastserve import fastserve
from lengthwise.eval.reproductions.hrrn import hrrn
from lengthwise.eval.reproductions.mc_sf import mc_sf
from lengthwise.eval.reproductions.melange import melange
from lengthwise.eval.reproductions.pars import pars
from lengthwise.eval.reproductions.past_future import past_future
from lengthwise.eval.reproductions.sarathi import sarathi
from lengthwise.eval.reproductions.ssjf import ssjf
from lengthwise.eval.reproductions.table import Progress, Reproduction
from lengthwise.eval.reproductions.tie import tie
from lengthwise.eval.reproductions.trail import trail
from lengthwise.eval.reproductions.uniboost import uniboost
from lengthwise.eval.reproductions.vllm_ltr import vllm_ltr
from lengthwise.eval.reproductions.vtc import vtc

PAPERS: dict[str, Callable[..., Reproduction]] = {
    "vllm-ltr": vllm_ltr,
    "ssjf": ssjf,
    "fastserve": fastserve,
    "trail": trail,
    "hrrn": hrrn,
    "clairvoyant": clairvoyant,
    "uniboost": uniboost,
    "vtc": vtc,
    "tie": tie,
    "sarathi": sarathi,
    "mc-sf": mc_sf,
    "past-future": past_future,
    "pars": pars,
    "melange": melange,
}


def reproduce(
    paper: str,
    seeds: int = 5,
    processes: int = 1,
    progress: Progress | None = None,
    cells: Cells | None = None,
    *,
    papers: Mapping[str, Callable[..., Reproduction]] = PAPERS,
    **options: Any,
) -> Reproduction:
    """Our version of a published table; raises ``UnknownNameError`` with the nearest name.

    With ``cells``, what is finished is kept, and is not run again. ``papers`` are those known,
    ``options`` what the paper's own function takes beside these.
    """
    if paper not in papers:
        raise UnknownNameError("paper", paper, papers)
    return papers[paper](seeds, processes, progress, cells, **options)


def about(papers: Mapping[str, Callable[..., Reproduction]] = PAPERS) -> dict[str, str]:
    """Each paper's name -> what of it is reproduced, in a line."""
    return {name: (getdoc(run) or "").partition("\n")[0] for name, run in papers.items()}
