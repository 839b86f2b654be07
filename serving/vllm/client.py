"""A process that runs vLLM's scheduler, and a replica that asks it for every decision."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from lengthwise.errors import InputError, InvariantError, LengthwiseError
from lengthwise.policy import SchedulingPolicy
from lengthwise.serving.engine import Clock, Replica, Step
from lengthwise.serving.options import Engine
from lengthwise.serving.request import Request
from lengthwise.serving.scoring import Scorer
from lengthwise.serving.vllm.environment import NEWEST, environment

SERVER = Path(__file__).with_name("server.py")


class Vllm:
    """A process with vLLM's scheduler of one version; a context manager.

    It serves any number of schedulers, one after the other or side by side.
    """

    def __init__(self, version: str = NEWEST) -> None:
        self.version = version
        found = environment(version)
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [str(found.python), "-P", str(SERVER)],
            env=found.variables(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
        )
        self._schedulers = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()
        self._log.close()

    def new(self, **options: Any) -> int:
        """A new scheduler; its number."""
        self._schedulers += 1
        self.ask("new", self._schedulers, **options)
        return self._schedulers

    def ask(self, do: str, scheduler: int, **given: Any) -> dict[str, Any]:
        """One command, one answer; an error of vLLM's becomes a ``LengthwiseError``."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, "id": scheduler, **given}) + "\n")
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            last = self._log.read().strip().splitlines()[-1:]
            raise LengthwiseError(f"vLLM {self.version} ended: {' '.join(last) or 'no message'}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LengthwiseError(f"vLLM {self.version}, {do}: {answer['error']}")
        return answer


class _Waiting:
    """The requests that wait inside vLLM, as far as they can be seen from outside."""

    def __init__(self) -> None:
        self.requests: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self.requests)

    def ordered(self) -> list[Request]:
        raise InputError("vLLM keeps its own waiting queue: its order can't be asked for or set")


class VllmReplica(Replica):
    """A replica whose decisions are vLLM's: the reference only times and books them."""

    def __init__(
        self,
        vllm: Vllm,
        index: int,
        engine: Engine,
        num_gpu_blocks: int,
        policy: SchedulingPolicy,
        scorer: Scorer,
        clock: Clock,
        hashes: tuple[NDArray[Any], NDArray[Any]] | None,
    ) -> None:
        super().__init__(index, engine, num_gpu_blocks, policy, scorer, clock)
        self._vllm = vllm
        self._hashes = hashes
        self._vllm_waiting = _Waiting()
        self.waiting = self._vllm_waiting  # type: ignore[assignment]
        self._scheduler = vllm.new(
            engine=dataclasses.asdict(engine), num_gpu_blocks=num_gpu_blocks, queue=policy.queue
        )

    def add(self, request: Request, now_ps: int, planned_ps: int) -> None:
        """A request arrives, and waits; its score, which must be static, is its priority."""
        self._set_first_score(request, now_ps, planned_ps)
        prompt: list[Any] = [request.prompt, [], 1]
        if self._hashes is not None:
            hashes, sizes = self._hashes
            prompt = [request.prompt, [int(h) for h in hashes[request.id]], int(sizes[request.id])]
        row = [request.id, request.arrival_ps, request.score, prompt, request.output, {}]
        self._vllm.ask("add", self._scheduler, requests=[row])
        self._vllm_waiting.requests[request.id] = request

    def begin(self, now_ps: int) -> None:
        """Starts an iteration."""
        self._step = Step(start_ps=max(now_ps, self._free_at_ps))

    def schedule(self, first: Sequence[Request] = ()) -> Step:
        """Has vLLM decide the iteration that ``begin`` started."""
        step, waiting = self._step, self._vllm_waiting.requests
        answer = self._vllm.ask("schedule", self._scheduler)
        running = {request.id: request for request in self.running}
        for id in answer["preempted"]:
            request = waiting[id] = running.pop(id)
            request.in_batch = False
            request.computed = 0
            request.preemptions += 1
            step.preempted.append(request)
        for id, tokens, before in answer["scheduled"]:
            if id in running:
                request = running[id]
                if request.computed != before:
                    raise InvariantError(f"request {id} computed {request.computed}, not {before}")
            else:
                request = running[id] = waiting.pop(id)
                request.in_batch = True
                request.computed = before
                if request.cached < 0:
                    request.cached = min(before, request.prompt)
            step.scheduled[request] = tokens
        self.running = list(running.values())
        self._compare(answer)
        self._launch(step)
        self.in_flight.append(step)
        return step

    def finish(self) -> list[Request]:
        """The oldest iteration in flight ends; vLLM must let the same requests go."""
        answer = self._vllm.ask("update", self._scheduler)
        step = self.in_flight.popleft()
        done = [request for request in step.yields if self._yielded(request, step.end_ps)]
        if [request.id for request in done] != answer["finished"]:
            raise InvariantError(f"vLLM finished {answer['finished']}, not {done}")
        for request in done:
            self._vllm_waiting.requests.pop(request.id, None)
        finished = set(done)
        self.running = [r for r in self.running if r not in finished]
        self._compare(answer)
        return done

    def check(self) -> None:
        """Nothing: after every command the counts were compared with vLLM's."""

    def _compare(self, answer: dict[str, Any]) -> None:
        self.kv.free = answer["free"]
        ours = len(self.running), len(self.waiting)
        if ours != (answer["running"], answer["waiting"]):
            raise InvariantError(
                f"vLLM has {answer['running']} requests running and {answer['waiting']} waiting, "
                f"not {ours[0]} and {ours[1]}"
            )
