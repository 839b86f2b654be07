"""A pytest plugin that puts the plugin's classes in the place of vLLM's schedulers.

A test that asks for vLLM's FCFS gets FCFS written as a score, one that asks for priorities the
policy ``priority``: each takes the whole path of our class and must come out as vLLM's own does.
"""

import os
from pathlib import Path
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.core.sched import async_scheduler, scheduler

from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.vllm import PolicyScheduling

type(current_platform).device_type = "cpu"  # these files of vLLM's know of no device
ARRIVAL = f"{Path(__file__).with_name('arrival_order.py')}:arrival"


def replacement(base: Any) -> Any:
    def start(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        options = vllm_config.scheduler_config
        settings = Settings(policy=ARRIVAL if options.policy == "fcfs" else "priority", guard=0.0)
        options.policy = "priority"
        made = (settings, settings.load(), Counters())
        PolicyScheduling.__init__(self, vllm_config, *args, lengthwise=made, **kwargs)

    return type(base.__name__, (PolicyScheduling, base), {"__init__": start})


if os.environ["LENGTHWISE_REPLACE"] == "1":
    scheduler.Scheduler = replacement(scheduler.Scheduler)
    async_scheduler.AsyncScheduler = replacement(async_scheduler.AsyncScheduler)
