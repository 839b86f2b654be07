"""Scheduling policies in vLLM (0.12 and later), from outside.

    vllm serve MODEL --scheduler-cls lengthwise.policies.plugins.vllm.scheduler \\
        --additional-config '{"lengthwise": {"policy": "srtf", "predictor": "DIR"}}'

vLLM's own ``schedule()`` still schedules. The plugin owns what it reads: the order of the waiting
queue, ``request.priority``, and which running requests gave way before it began. ``fcfs`` is vLLM's
own class, untouched; with a predictor it is watched, its order being what it was (shadow mode).
With ``record``, finished requests are written down to train predictors on.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

from lengthwise.errors import InputError
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.record import Recorder
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.vllm.announce import announcement
from lengthwise.policies.plugins.vllm.driver import Driver
from lengthwise.policies.plugins.vllm.shadow import ShadowScheduling
from lengthwise.policy import SchedulingPolicy

LOG = "vllm.lengthwise"  # below vLLM's own logger: its times, levels, streams and settings
ENVIRONMENT = "LENGTHWISE_VLLM"  # the settings as JSON, where additional_config says nothing


def scheduler(vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
    """vLLM's ``--scheduler-cls``: its own scheduler, ordered by the policy that was configured.

    Raises ``InputError`` for a configuration that can't work, by name.
    """
    settings = Settings.parse(_given(vllm_config))
    policy = settings.load()
    refuse(vllm_config, policy)
    settings.refuse_idle(policy)
    rank = _rank(vllm_config)
    counters = Counters(logging.getLogger(LOG), str(rank))
    made = _base(vllm_config)
    more: dict[str, Any] = {}
    if policy.queue != "fcfs":
        vllm_config.scheduler_config.policy = "priority"
        made = type(f"Policy{made.__name__}", (PolicyScheduling, made), {})
        more = {"lengthwise": (settings, policy, counters)}
    elif settings.predictor_folder:
        made = type(f"Shadowed{made.__name__}", (ShadowScheduling, made), {})
        more = {"lengthwise": (settings, counters)}
    if settings.record:
        made = type(f"Recorded{made.__name__}", (RecordedScheduling, made), {})
        more["lengthwise_record"] = (settings, counters)
    built = made(vllm_config, *args, **more, **kwargs)
    if settings.metrics_port:
        counters.listen(settings.metrics_host, settings.metrics_port + rank)
    counters.log.info("%s", announcement(settings, policy))
    return built


def _rank(vllm_config: Any) -> int:
    """Which of the data-parallel engines this is: of models without experts each one is rank 0."""
    parallel = vllm_config.parallel_config
    return int(getattr(parallel, "data_parallel_index", parallel.data_parallel_rank) or 0)


def refuse(vllm_config: Any, policy: SchedulingPolicy) -> None:
    """Raises ``InputError`` for what doesn't work together with the policy."""
    reasons = []
    if policy.admission.reserve:
        reasons.append("memory-aware admission (+admit)")
    if policy.preemption.mode == "swap":
        reasons.append("preemption by swapping (vLLM recomputes: +preempt:mode=recompute)")
    if policy.queue == "fcfs":
        if policy.preemption.mode != "none":
            reasons.append("preemption with vLLM's own queue")
        if vllm_config.scheduler_config.policy != "fcfs":
            reasons.append("policy fcfs with --scheduling-policy priority (use policy priority)")
    elif policy.preemption.mode != "none":
        off = "; +preempt:mode=none switches policy preemption off"
        if vllm_config.kv_transfer_config is not None:
            reasons.append(f"policy preemption with a KV connector{off}")
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            reasons.append(f"policy preemption with pipeline parallelism{off}")
    if reasons:
        raise InputError(f"policy {policy.name!r} in vLLM: not supported: {', '.join(reasons)}")


class PolicyScheduling:
    """Goes before vLLM's ``Scheduler`` or ``AsyncScheduler`` in a class made of both.

    ``lengthwise`` is the one attribute that is added to theirs.
    """

    lengthwise: Driver

    def __init__(
        self,
        vllm_config: Any,
        *args: Any,
        lengthwise: tuple[Settings, SchedulingPolicy, Counters],
        **kwargs: Any,
    ) -> None:
        super().__init__(vllm_config, *args, **kwargs)  # type: ignore[call-arg]
        self.lengthwise = Driver(self, *lengthwise)

    def add_request(self, request: Any) -> None:
        """A request arrives."""
        self.lengthwise.arrive(request)
        super().add_request(request)  # type: ignore[misc]

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """One step: the policy first, then vLLM's own scheduling."""
        driver = self.lengthwise
        driver.before_step(throttled=any(args) or any(kwargs.values()))
        try:
            output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        finally:
            driver.after_step()
        driver.launched(output.num_scheduled_tokens)
        if driver.gave_way and output.preempted_req_ids is not None:
            # before 0.26 vLLM lists only those that it preempted itself
            output.preempted_req_ids.update(driver.gave_way)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """A step's results are there."""
        self.lengthwise.landed(scheduler_output.num_scheduled_tokens)
        return super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output
        )

    def shutdown(self) -> None:
        """The engine ends."""
        self.lengthwise.close()
        super().shutdown()  # type: ignore[misc]

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)  # type: ignore[misc]
        self.lengthwise.preempted(request)

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self.lengthwise.finished(request)
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]


class RecordedScheduling:
    """Goes before a scheduler's class in a class made of both: records what finishes."""

    lengthwise_record: Recorder

    def __init__(
        self,
        vllm_config: Any,
        *args: Any,
        lengthwise_record: tuple[Settings, Counters],
        **kwargs: Any,
    ) -> None:
        super().__init__(vllm_config, *args, **kwargs)  # type: ignore[call-arg]
        settings, counters = lengthwise_record
        self.lengthwise_record = Recorder(settings, vllm_config.model_config, counters)

    def shutdown(self) -> None:
        """The engine ends."""
        self.lengthwise_record.close()
        super().shutdown()  # type: ignore[misc]

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self.lengthwise_record.finished(request)
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]


def _given(vllm_config: Any) -> Any:
    """The settings: of ``--additional-config``, else of the environment."""
    config = vllm_config.additional_config
    given = config.get("lengthwise") if isinstance(config, dict) else None
    if given is not None:
        return given
    if ENVIRONMENT not in os.environ:
        raise InputError(
            'no policy: pass --additional-config \'{"lengthwise": {"policy": "srtf"}}\''
        )
    try:
        return json.loads(os.environ[ENVIRONMENT])
    except ValueError as error:
        raise InputError(f"{ENVIRONMENT} is not JSON: {error}") from None


def _base(vllm_config: Any) -> Any:
    """The class that vLLM itself would take: the wrong one of the two costs most of the speed."""
    config = vllm_config.scheduler_config
    named, config.scheduler_cls = config.scheduler_cls, None
    try:
        return config.get_scheduler_cls()
    finally:
        config.scheduler_cls = named
