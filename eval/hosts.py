"""Hosts as they differ: which conclusions of a comparison hold on all of them.

A profile is of one card beside one CPU. Of other cards of its kind and other hosts the simulator
knows that they differ, and by how much those did that were seen (docs/fidelity.md): GPUs from 0.95
to 1.05 of a profile's times, CPUs from 0.5 to 2.5 of a CPU's at its best. Near saturation a queue
multiplies both, so a comparison is run again at the corners.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from lengthwise.errors import InputError
from lengthwise.protocols import TimingModel
from lengthwise.serving.nodes import Kind
from lengthwise.serving.timing.profile import ProfileTiming
from lengthwise.serving.timing.roofline import RooflineTiming
from lengthwise.serving.timing.speed import AtSpeed

NEAR = 0.85  # share of the capacity from which hosts differ by more than policies may


@dataclass(frozen=True)
class Host:
    """A host beside the profile's: what its GPU's and its CPU's times are multiplied with."""

    name: str
    gpu: float
    cpu: float


def _corners(gpu: tuple[float, float], cpu: tuple[float, float]) -> tuple[Host, ...]:
    return (
        Host("fast", gpu[0], cpu[0]), Host("slow CPU", gpu[0], cpu[1]),
        Host("slow GPU", gpu[1], cpu[0]), Host("slow", gpu[1], cpu[1]),
    )  # fmt: skip


SEEN = _corners((0.95, 1.05), (0.5, 2.5))
# What is left once both factors were found on a few runs (docs/fidelity.md, "Calibrated")
CALIBRATED = _corners((0.98, 1.02), (0.8, 1.25))


def hosts_of(kinds: Sequence[Kind]) -> tuple[Host, ...]:
    """``SEEN``, or ``CALIBRATED`` where the timings' names say what the host is like.

    Raises ``InputError`` for a timing that tells no GPU from a CPU.
    """
    timings = [_inner(kind.timing) for kind in kinds]
    for timing in timings:
        if not isinstance(timing, ProfileTiming | RooflineTiming):
            raise InputError(
                f"host uncertainty is of profiles and rooflines: {timing.name!r} has no GPU and "
                "CPU whose times could differ"
            )
    return CALIBRATED if all(calibrated(timing) for timing in timings) else SEEN


def calibrated(timing: TimingModel) -> bool:
    """Whether factors of a host were given."""
    if isinstance(timing, ProfileTiming):
        return (timing.gpu, timing.cpu) != (1.0, 1.0)
    return isinstance(timing, RooflineTiming) and (timing.gpu_factor, timing.cpu) != (1.0, None)


def on_host(timing: TimingModel, host: Host) -> TimingModel:
    """``timing`` on another host."""
    if isinstance(timing, AtSpeed):
        return dataclasses.replace(timing, timing=on_host(timing.timing, host))
    if isinstance(timing, ProfileTiming):
        return timing.with_factors(gpu=timing.gpu * host.gpu, cpu=timing.cpu * host.cpu)
    if isinstance(timing, RooflineTiming):
        cpu = 1.0 if timing.cpu is None else timing.cpu
        return timing.with_factors(gpu=timing.gpu_factor * host.gpu, cpu=cpu * host.cpu)
    return timing


def _inner(timing: TimingModel) -> TimingModel:
    return _inner(timing.timing) if isinstance(timing, AtSpeed) else timing


def spread(hosts: Sequence[Host]) -> str:
    """``GPU 0.95 to 1.05 and CPU 0.5 to 2.5 of the profile's times``."""
    gpu, cpu = ([getattr(host, name) for host in hosts] for name in ("gpu", "cpu"))
    return (
        f"GPU {min(gpu):g} to {max(gpu):g} and CPU {min(cpu):g} to {max(cpu):g} of the profile's "
        "times"
    )
