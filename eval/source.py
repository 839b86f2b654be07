"""Where the workload of a grid comes from: the same for every policy, drawn anew for every seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lengthwise.serving.workload import load_workload
from lengthwise.serving.workload.presets import PRESETS
from lengthwise.workload import Workload


class Source(Protocol):
    """Makes the workload of one point of a grid; must be picklable to run in other processes."""

    @property
    def name(self) -> str:
        """What tables call the workload."""
        ...

    def load(self, rate: float | None, seed: int) -> Workload:
        """The workload at ``rate`` requests/s (None: its own), drawn with ``seed``."""
        ...


@dataclass(frozen=True)
class Spelled:
    """A workload as the command line spells it: a preset, a file, prompts joined to arrivals.

    ``options`` are those of ``lengthwise.serving.workload.load_workload``.
    """

    spec: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The workload's spelling, files without their folders."""
        arrivals = self.options.get("arrivals")
        named = Path(self.spec).name
        return f"{named}, arrivals of {Path(str(arrivals)).name}" if arrivals else named

    @property
    def drawn(self) -> bool:
        """Whether a seed may draw other requests, which a trace with its own arrivals has not."""
        return self.spec in PRESETS or self.options.get("arrivals") is not None

    def load(self, rate: float | None, seed: int) -> Workload:
        """Reads or draws it."""
        return load_workload(self.spec, rate=rate, seed=seed, **self.options)


@dataclass(frozen=True)
class Fixed:
    """A workload at hand: rates stretch its arrivals, seeds change nothing in it."""

    workload: Workload

    @property
    def name(self) -> str:
        """The workload's name."""
        return self.workload.name

    def load(self, rate: float | None, seed: int) -> Workload:
        """The workload, stretched to ``rate``."""
        return self.workload if rate is None else self.workload.at_rate(rate)


@dataclass(frozen=True)
class Cut:
    """Windows of a trace in place of seeds: seed k is its k-th window, at ``rate``."""

    name: str
    windows: tuple[Workload, ...]

    def load(self, rate: float | None, seed: int) -> Workload:
        """Window ``seed``, which starts again with the first one after the last."""
        window = self.windows[seed % len(self.windows)]
        return window if rate is None else window.at_rate(rate)

    def of_seed(self, seed: int) -> Cut:
        """What that seed sees alone."""
        return Cut(self.name, (self.windows[seed % len(self.windows)],))


def as_source(workload: str | Workload | Source) -> Source:
    """A source from a spelling, a workload or a source."""
    if isinstance(workload, str):
        return Spelled(workload)
    return Fixed(workload) if isinstance(workload, Workload) else workload
