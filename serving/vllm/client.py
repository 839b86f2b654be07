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

import lengthwise
from lengthwise.errors import InputError, InvariantError, LengthwiseError
from lengthwise.serving.inputs import Inputs
from lengthwise.serving.records import PS
from lengthwise.serving.reference.kv_cache import KVCache
from lengthwise.serving.reference.request import Request
from lengthwise.serving.reference.scheduler import Viewer
from lengthwise.serving.reference.timeline import Step
from lengthwise.serving.scoring import Scorer
from lengthwise.serving.system import Node
from lengthwise.serving.vllm.environment import NEWEST, environment
from lengthwise.workload import Workload

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
            [str(found.python), "-P", str(SERVER), str(Path(lengthwise.__file__).parent)],
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

    def drop(self, scheduler: int) -> None:
        """Forgets a scheduler."""
        self.ask({"do": "drop", "id": scheduler})

    def new(self, **options: Any) -> int:
        """A new scheduler; its number."""
        self._schedulers += 1
        self.ask({"do": "new", "id": self._schedulers, **options})
        return self._schedulers

    def ask(self, *commands: dict[str, Any]) -> list[dict[str, Any]]:
        """Commands and their answers; an error of vLLM's becomes a ``LengthwiseError``."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(commands) + "\n")
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            last = self._log.read().strip().splitlines()[-1:]
            raise LengthwiseError(f"vLLM {self.version} ended: {' '.join(last) or 'no message'}")
        answers: list[dict[str, Any]] = json.loads(line)
        if "error" in answers[-1]:
            raise LengthwiseError(f"vLLM {self.version}: {answers[-1]['error']}")
        return answers


class VllmScheduler:
    """vLLM as a ``Decider``: the reference's replica only times what it decides, and books it."""

    view: Viewer

    def __init__(
        self,
        vllm: Vllm,
        index: int,
        node: Node,
        scorer: Scorer,
        inputs: Inputs,
        workload: Workload,
        plugin: dict[str, Any] | None,
    ) -> None:
        # commands that vLLM has not been told yet, and what it must answer (None: whatever)
        self._unsent: list[tuple[dict[str, Any], dict[str, Any] | None]] = []
        self.engine, policy = node.engine, node.policy
        self.index = index
        blocks = inputs.nodes[index].num_gpu_blocks
        self.kv = KVCache(blocks, self.engine.block_size, self.engine.enable_prefix_caching)
        self.running: list[Request] = []
        self._scorer, self._now_ps = scorer, 0
        self._vllm, self._inputs, self._workload, self._plugin = vllm, inputs, workload, plugin
        self.waiting: dict[int, Request] = {}  # inside vLLM, as far as can be seen from outside
        options = dataclasses.asdict(self.engine)
        self._scheduler = vllm.new(
            engine=options, num_gpu_blocks=blocks, queue=policy.queue if plugin is None else "fcfs",
            plugin=plugin,
        )  # fmt: skip

    def add(self, request: Request, now_ps: int, planned_ps: int) -> None:
        """A request arrives, and waits.

        In stock vLLM its priority is its score, which doesn't change; the plugin takes the client's
        own priority, and the predicted length as a client would send it.
        """
        id, prompt = request.id, [request.prompt, [], 1]
        if self._inputs.nodes[self.index].block_keys is not None:
            hashes, size = self._workload["prefix_hashes"], self._workload["hash_block_tokens"]
            prompt = [request.prompt, [int(h) for h in hashes[id]], int(size[id])]
        extra: dict[str, float] = {}
        if self._plugin is None:
            score = self._scorer.known_at_arrival(request, planned_ps)
            if score is None:
                self._scorer.update([request], self.view(now_ps, self._scorer.reads))
            else:
                request.score = score
            arrival, priority = float(request.arrival_ps), request.score
        else:
            arrival, priority = request.arrival_ps / PS, 0.0
            if "priority" in self._workload:
                priority = float(self._workload["priority"][id])
            if "deadline_s" in self._workload:
                extra["deadline_s"] = float(self._workload["deadline_s"][id]) - arrival
            if self._inputs.predicted is not None:
                extra["predicted_tokens"] = float(self._inputs.predicted[id])
        row = [id, arrival, priority, prompt, request.output, extra]
        self._tell(None, do="add", request=row)
        self.waiting[id] = request

    def drop(self) -> None:
        """Lets vLLM forget this scheduler."""
        self._settle()
        self._vllm.drop(self._scheduler)

    def settle(self) -> None:
        """Has vLLM do all that it has not been told yet."""
        self._settle()

    def remove(self, request: Request) -> None:
        """Refused: vLLM forgets a request only by aborting it."""
        raise InputError("a request can't be taken out of vLLM and go on elsewhere")

    def candidates(self) -> list[Request]:
        """Refused: vLLM's queue is its own."""
        raise InputError("vLLM keeps its own waiting queue: its order can't be asked for or set")

    def cached_tokens(self, request: Request) -> int:
        """Nothing without a prefix cache; vLLM's own can't be looked into."""
        if self.engine.enable_prefix_caching:
            raise InputError("vLLM's prefix cache can't be looked into: cached_tokens is not known")
        return 0

    def begin(self, now_ps: int) -> None:
        """Starts an iteration."""
        self._now_ps = now_ps

    def preempt(self, victims: Sequence[Request] | None) -> None:
        """Nothing: vLLM preempts when it is told to schedule."""
        if victims is not None:
            raise InputError("vLLM chooses itself whom it preempts: a run of its can't be told")

    def schedule(self, first: Sequence[Request]) -> Step:
        """Has vLLM decide the iteration that ``begin`` started."""
        step, waiting = Step(), self.waiting
        self._tell(None, do="schedule", now_s=self._now_ps / PS)
        answer = self._settle()
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
        if answer["waiting"] != len(waiting):
            raise InvariantError(f"vLLM has {answer['waiting']} waiting, not {len(waiting)}")
        return step

    def finish(self, step: Step) -> list[Request]:
        """The oldest iteration under way has ended; vLLM must let the same requests go."""
        done = [request for request in step.yields if request.generated == request.output]
        for request in done:
            self.waiting.pop(request.id, None)
        finished = set(done)
        self.running = [r for r in self.running if r not in finished]
        expected = {
            "finished": [request.id for request in done],
            "running": len(self.running), "waiting": len(self.waiting),
        }  # fmt: skip
        self._tell(expected, do="update")
        return done

    def check(self) -> None:
        """Nothing: every answer is compared with what must come."""

    def _tell(self, expected: dict[str, Any] | None, **command: Any) -> None:
        self._unsent.append(({"id": self._scheduler, **command}, expected))

    def _settle(self) -> dict[str, Any]:
        """Sends what is unsent, compares the answers, and returns the last one."""
        if not self._unsent:
            return {}
        told, self._unsent = self._unsent, []
        answers = self._vllm.ask(*(command for command, _ in told))
        for answer, (_, expected) in zip(answers, told, strict=True):
            for name, value in (expected or {}).items():
                if answer[name] != value:
                    raise InvariantError(f"{name} is {value}, but {answer[name]} with vLLM")
            self.kv.free = answer.get("free", self.kv.free)
        return answers[-1]
