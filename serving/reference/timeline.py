"""When a replica's iterations run and end; what they hold is decided before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lengthwise.protocols import Batch
from lengthwise.serving.clock import Clock
from lengthwise.serving.events import Window, stretched
from lengthwise.serving.reference.request import Request
from lengthwise.serving.timing.model import Pipeline


@dataclass(slots=True, eq=False)
class Step:
    """One iteration: what was scheduled, when it runs and what it yields."""

    scheduled: dict[Request, int] = field(default_factory=dict)  # request -> tokens, in order
    preempted: list[Request] = field(default_factory=list)
    admitted: Request | None = None  # the last one that entered the batch
    pulled: list[Request] = field(default_factory=list)  # whose KV sets out for here
    swapped_tokens: int = 0  # moved to or from host memory
    recomputed_tokens: int = 0  # computed before, and lost to a preemption
    yields: list[Request] = field(default_factory=list)  # those that get a token at its end
    batch: Batch = field(default_factory=Batch)
    start_ps: int = 0
    end_ps: int = 0
    seen_ps: int = 0  # when clients have its tokens


class Timeline:
    """The GPU's time and the CPU's, iteration by iteration, in integer picoseconds."""

    def __init__(self, clock: Clock, slow: Sequence[Window] = ()) -> None:
        self.clock = clock
        self._slow = slow
        self.launched_ps = 0  # when the CPU has launched all that was scheduled
        self._free_at_ps = 0  # when the GPU has done all that was scheduled

    def starts_ps(self, now_ps: int) -> int:
        """When an iteration that is scheduled now starts, as far as is known before it is."""
        return max(now_ps, self._free_at_ps)

    def place(self, step: Step, now_ps: int, running: int, before: Step | None) -> None:
        """Gives a step its times; ``before`` is the one that is under way, if one is."""
        swap_ps = step.swapped_tokens * self.clock.swap_ps_per_token
        if self.clock.pipeline is not None:
            self._pipelined(step, now_ps, running, before, swap_ps, self.clock.pipeline)
            return
        duration = (self.clock.iteration_ps(step.batch) if step.scheduled else 0) + swap_ps
        duration = self._slowed(duration, step.start_ps)
        step.end_ps = step.seen_ps = self._free_at_ps = step.start_ps + duration

    def _slowed(self, duration_ps: int, start_ps: int) -> int:
        """How long the GPU's work takes that starts at a moment."""
        for begins_ps, ends_ps, factor in self._slow:
            if begins_ps <= start_ps < ends_ps:
                return stretched(duration_ps, factor)
        return duration_ps

    def _pipelined(
        self,
        step: Step,
        now_ps: int,
        running: int,
        before: Step | None,
        swap_ps: int,
        times: Pipeline,
    ) -> None:
        """Times an iteration on two clocks; see ``timing.Pipeline``.

        The CPU sees the iteration before it only once it has launched this one: that one's end
        moves. Its update is the CPU's too, so iterations end in order.
        """
        scheduled = max(now_ps, self.launched_ps) + times.schedule_ps(running)
        work = prepare = launch = tail = 0
        if step.scheduled:
            work, prepare = times.gpu_ps(step.batch), times.prepare_ps(step.batch)
            launch, tail = times.launch_ps(step.batch), times.tail_ps(step.batch)
        self.launched_ps = scheduled + launch
        step.start_ps = max(self._free_at_ps, scheduled + prepare)
        work = self._slowed(work + swap_ps, step.start_ps)
        self._free_at_ps = max(step.start_ps + work, self.launched_ps + tail)
        seen = self._free_at_ps
        if before is not None:
            before.end_ps = max(before.end_ps, self.launched_ps + times.update_ps(before.batch))
            before.seen_ps = before.end_ps + times.output_ps(len(before.yields))
            seen = max(seen, before.end_ps)
        step.end_ps = seen + times.update_ps(step.batch)
        step.seen_ps = step.end_ps + times.output_ps(len(step.yields))
