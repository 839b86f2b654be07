"""The plugin in SGLang's own queue, preemption and queue limit: run by ``sglang_environment``.

Prints one JSON line. Requests and what surrounds the scheduler are stand-ins; what sorts, preempts
and aborts, and what makes of a request what the scheduler gets, is SGLang's own code, hooked by
SGLang's own registry. What its files import and none of that needs is a stub.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from tests.engines import sglang_stubs

sglang_stubs.install("orjson", "IPython", "torchvision", "gguf")

# ruff: noqa: E402
import msgspec
from sglang.srt.managers import schedule_batch, schedule_policy, scheduler, tokenizer_manager
from sglang.srt.managers.io_struct import (
    BatchTokenIDOutput,
    GenerateReqInput,
    TokenizedGenerateReqInput,
)
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.tokenizer_manager import ReqState
from sglang.srt.observability.metrics_collector import QueueCount
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.sampling.sampling_params import SamplingParams

from lengthwise.policies.plugins import prompt_lengths, sglang
from lengthwise.policies.plugins.settings import Settings
from lengthwise.prediction import Prediction

MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
schedule_policy.match_kv_cache = MagicMock()
scheduler._make_abort_req = MagicMock()
CONTEXT = SimpleNamespace(
    disaggregation_mode="null", radix_eviction_policy="lru",
    schedule_low_priority_values_first=True,
)  # fmt: skip
for getter in ("get_disagg", "get_memory", "get_schedule"):
    setattr(schedule_policy, getter, lambda: CONTEXT)
for getter in ("get_disagg", "get_memory", "get_serving", "get_spec", "get_exec"):
    nothing = MagicMock(batch_notify_size=16, speculative_algorithm=None)
    setattr(tokenizer_manager, getter, lambda made=nothing: made)


class Request(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]


def request(name: str, predicted: Any, at_s: float, priority: Any = None, done: int = 0) -> Any:
    return Request(
        rid=name, origin_input_ids=[0] * 9, output_ids=[0] * done, priority=priority,
        sampling_params=SimpleNamespace(
            custom_params=predicted if isinstance(predicted, list) else
            None if predicted is None else {"predicted_tokens": predicted}, max_new_tokens=4096,
        ),
        time_stats=SimpleNamespace(wait_queue_entry_time=at_s, trace_ctx=MagicMock()),
        finished=lambda: False, full_untruncated_fill_ids=[0] * 9, prefix_len=0, session=None,
        mm_inputs=None, cache_request_handle=None, release_mm_inputs_on_abort=MagicMock(),
    )  # fmt: skip


def policy(low_first: bool, enabled: bool = True) -> Any:
    tree = MagicMock()
    tree.supports_fast_match_prefix.return_value = tree.supports_prefix_sharing.return_value = False
    return schedule_policy.SchedulePolicy("fcfs", tree, False, enabled, low_first)


def waiting_room(queue: list[Any], low_first: bool) -> Any:
    """What SGLang's ``Scheduler`` needs of itself to take a request into a queue of ``queue``."""
    made = SimpleNamespace(
        waiting_queue=queue, max_queued_requests=len(queue), enable_priority_scheduling=True,
        schedule_low_priority_values_first=low_first, tree_cache=MagicMock(),
        beam_coordinator=MagicMock(), aborted=[], abort_on_priority_when_disabled=False,
    )  # fmt: skip
    made.send_abort_output = lambda output, aborted: made.aborted.append(aborted.rid)
    made._release_aborted_request = MagicMock()
    return made


def queue_of(low_first: bool, **priorities: int) -> tuple[list[Any], Any]:
    """Five waiting requests as they are in a scheduler, some with a priority of their client's."""
    lengths = {"a": 80, "b": None, "c": 20, "d": [1, 2], "e": "100"}
    queue = [request(n, length, i, priorities.get(n)) for i, (n, length) in
             enumerate(lengths.items())]  # fmt: skip
    made = waiting_room(queue, low_first)
    for one in queue:
        assert Scheduler._set_or_validate_priority(made, one)
    return queue, made


def ordered(low_first: bool) -> dict[str, Any]:
    queue, _ = queue_of(low_first, c=7)
    before = {one.rid: one.priority for one in queue}
    policy(low_first).calc_priority(queue, SimpleNamespace(reqs=[]), processed_tokens=3)
    return {
        "order": "".join(one.rid for one in queue),
        "kept": before == {one.rid: one.priority for one in queue},
        "labels": len(QueueCount.from_reqs(queue, True).by_priority or ()),
    }


def full(low_first: bool, mine: int | None) -> list[str]:
    """Whom a newcomer of this priority to a full queue costs the place; "b" has priority 5."""
    queue, made = queue_of(low_first, a=4, b=5, c=4, d=4, e=4)
    policy(low_first).calc_priority(queue, SimpleNamespace(reqs=[]))
    newcomer = request("new", 1, 9.0, mine)
    Scheduler._set_or_validate_priority(made, newcomer)
    Scheduler._abort_on_queued_limit(made, newcomer)
    return list(made.aborted)


def preempted(predicted: float, threshold: int) -> dict[str, Any]:
    """Who gives way to a request of this length, and the priorities that their cache is kept at."""
    running = [request("long", 500, 0, 3, done=10), request("short", 60, 1, 3, done=30)]
    released: list[Any] = []
    batch = SimpleNamespace(
        reqs=running, filter_batch=lambda keep_indices: None, req_to_token_pool=None,
        token_to_kv_pool_allocator=None, tree_cache=None, hisparse_coordinator=None,
    )  # fmt: skip
    batch.release_req = lambda i, left: ScheduleBatch.release_req(batch, i, left)
    schedule_batch.release_req = lambda req, **rest: released.append((req.rid, req.priority))
    adder = SimpleNamespace(
        running_batch=batch, preempt_list=[], rem_total_tokens=0,
        priority_scheduling_preemption_threshold=threshold,
        _request_slot_reserve_for_req=lambda req: 0, memory_budget=SimpleNamespace(total_offset=0),
        _get_running_request_total_token_offset=lambda req: 10_000,
    )  # fmt: skip
    new = request("new", predicted, 2, 3)
    done = schedule_policy.PrefillAdder.preempt_to_schedule(adder, new)
    return {
        "done": done,
        "released": released,
        "kept": {r.priority for r in (new, *running)} == {3},
    }


class Told:
    """A predictor in one's hand: nine tokens a prompt token."""

    needs: frozenset[str] = frozenset({"prompt_tokens"})
    uses: frozenset[str] = frozenset()

    def predict(self, prompts: Any, *, prompt_tokens: Any, context: Any = None) -> Any:
        return Prediction.exact([9.0 * n for n in prompt_tokens])


def front() -> dict[str, Any]:
    """Requests through SGLang's tokenizer manager: what its scheduler gets, and what is learned."""
    ended: list[Any] = []
    learned = prompt_lengths.PromptLengths
    learned.ended = lambda self, expected, tokens: ended.append((expected.said, tokens))
    prompt_lengths.saved_predictor = lambda folder: Told()
    sglang.configured = lambda: Settings(policy="srtf", predictor="p")
    HookRegistry.reset()
    sglang.register()
    HookRegistry.apply_hooks()
    made: Any = object.__new__(tokenizer_manager.TokenizerManager)
    made.__dict__.update(
        server_args=SimpleNamespace(model_path="m", tokenizer_path="t"), context_len=4096,
        tokenizer=MagicMock(all_special_tokens=[], chat_template=None), mm_processor=None,
        served_model_name="m", model_config=MagicMock(vocab_size=1000), rid_to_state={},
        preferred_sampling_params=None, sampling_params_class=SamplingParams, is_generation=True,
        tokenized_generate_req_type=TokenizedGenerateReqInput, enable_metrics=False,
        dump_requests_folder="", crash_dump_folder="", skip_tokenizer_init=False,
        incremental_streaming_output=False,
    )  # fmt: skip
    made.tokenizer.decode = lambda ids, **rest: "x" * len(ids)
    made._validate_one_request = made._release_lora_once = lambda *given: None
    made.config_value = lambda name: None
    (hooked,) = [h for _, h, _ in HookRegistry._hooks[f"{MANAGER}.__init__"]]
    hooked(None, made)

    async def run() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for rid, tokens, said in (("1", 5, None), ("2", 6, {"predicted_tokens": 4}),
                                  ("3", 7, None)):  # fmt: skip
            obj = GenerateReqInput(
                input_ids=[1] * tokens, rid=rid,
                sampling_params={"max_new_tokens": 50, "custom_params": said},
            )  # fmt: skip
            obj.normalize_batch_and_arguments()
            stats = MagicMock(first_token_time=1.0)
            stats.trace_ctx.tracing_enable = False
            made.rid_to_state[rid] = ReqState([], False, asyncio.Event(), obj, stats)
            sent = await made._tokenize_one_request(obj)
            encoded = msgspec.msgpack.encode(sent.sampling_params)  # as it goes to the ranks
            found[rid] = msgspec.msgpack.decode(encoded, type=SamplingParams).custom_params
        out = MagicMock(spec=BatchTokenIDOutput)
        out.configure_mock(
            rids=["1", "2", "3"], finished_reasons=[{"type": "stop"}, None, {"type": "length"}],
            completion_tokens=[11, 3, 50], output_ids=[[1]] * 3, **{name: None for name in (
                "time_stats", "customized_info", "weight_versions", "output_hidden_states",
                "routed_experts", "indexer_topk", "dp_ranks", "cached_tokens_details",
                "image_tokens", "audio_tokens", "video_tokens", "output_token_sampling_mask",
            )}, **{name: [0] * 3 for name in (
                "prompt_tokens", "retraction_counts", "reasoning_tokens", "cached_tokens",
            )},
        )  # fmt: skip
        await made._handle_batch_output(out)
        return found

    return {"sent": asyncio.run(run()), "ended": ended, "still there": list(made.rid_to_state)}


def raised(given: str | None = None) -> str:
    """What ends the start of a server with these settings, or without priority scheduling."""
    try:
        if given is None:
            policy(low_first=True, enabled=False)
        else:
            os.environ["LENGTHWISE_SGLANG"] = given
            sglang.register()
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main() -> None:
    found: dict[str, Any] = {"stock": full(True, 4)}
    sglang.register()
    HookRegistry.apply_hooks()
    with contextlib.redirect_stdout(sys.stderr):
        for low_first in (True, False):
            name = "lowest first" if low_first else "highest first"
            found[name] = ordered(low_first)
            found[f"full, {name}"] = [full(low_first, mine) for mine in (None, 3, 4, 6)]
        policy(low_first=True)
        found["preempted"] = [preempted(20, 10), preempted(480, 10), preempted(20, 1000)]
        found["not enabled"] = raised()
        found["guard"] = raised('{"policy": "srtf", "guard": 2.0}')
        found["preemption"] = raised('{"policy": "srtf+preempt:price=0"}')
        found["front"] = front()  # the last: it sets settings for all that follows
    print(json.dumps(found), file=ANSWERS, flush=True)


main()
