"""The serving engine's options, with vLLM's names and meanings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lengthwise.errors import InputError, UnknownNameError

# The versions that the engine is held equal to, newest last, and the options in which they differ.
VERSIONS: dict[str, dict[str, Any]] = {
    "0.26.0": {"long_prefill_applies_alone": True, "schedule_past_preemption": False},
    "0.33.0": {},
}


# What an iteration can hold: each token of it takes 32 bytes of a node's tables.
MOST_BATCHED_TOKENS = 2**22
MOST_BLOCKS = 2**23  # each takes 48 bytes of a node's tables
MOST = 2**40  # of the other options: above any engine, below where sums of them overflow
LIKE = ("vllm-serve",)  # whose choices ``Engine.like`` knows
UNLIKE = {  # engines that are asked for and are others than this one, and what differs
    "sglang": "SGLang runs prefill and decoding in batches of their own and prefill first (unless "
    "--enable-mixed-chunk), and takes its seats from the memory that is left",
}
DEFAULT_TIMING = "h200/llama-3.1-8b"  # what serves where nothing else was asked for


@dataclass(frozen=True)
class Engine:
    """Options of one simulated replica; names as in vLLM's ``SchedulerConfig``/``CacheConfig``."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    num_gpu_blocks: int | None = None  # None takes the timing profile's
    block_size: int = 16
    max_model_len: int | None = None  # None: only the KV blocks limit a request's length
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = False
    long_prefill_token_threshold: int = 0  # 0 is off
    async_scheduling: bool = False  # an iteration is scheduled while the one before it runs
    scheduler_reserve_full_isl: bool = True  # admit only what fits whole, not just its first chunk
    watermark: float = 0.0  # share of KV blocks kept free when a request joins others
    # What vLLM changed between the versions in VERSIONS; the defaults are the newest one's.
    long_prefill_applies_alone: bool = False  # the threshold also cuts a request that is alone
    schedule_past_preemption: bool = True  # who preempts itself does not end the batch's turn

    @classmethod
    def of_vllm(cls, version: str, **options: Any) -> Engine:
        """Options under which the engine schedules as that version of vLLM does."""
        if version not in VERSIONS:
            raise UnknownNameError("vLLM version", version, VERSIONS)
        return cls(**{**VERSIONS[version], **options})

    @classmethod
    def like(cls, name: str, gpu: str, version: str | None = None, **options: Any) -> Engine:
        """What ``name`` would choose by itself on a GPU; ``options`` are those given to it.

        ``vllm-serve`` is vLLM's API server (``EngineArgs.get_batch_defaults`` of 0.12 to 0.33): on
        GPUs of 70 GiB or more that are no A100 1,024 seats and 8,192 tokens an iteration, elsewhere
        256 and 2,048; asynchronous scheduling and prefix caching are on. The context's length is
        the model's, which only the KV cache limits here. ``gpu`` is a short name (h200).
        """
        from lengthwise.serving.timing.roofline import gpus  # its tables are made of options

        if name in UNLIKE:
            raise InputError(
                f"this engine is vLLM's ({', '.join(LIKE)}) and can't be like {name}: "
                f"{UNLIKE[name]}"
            )
        if name not in LIKE:
            raise UnknownNameError("engine to be like", name, LIKE)
        if gpu not in gpus():
            raise UnknownNameError("GPU", gpu, gpus())
        seats, tokens = serve_batch(gpus()[gpu].memory_gib, gpu == "a100")
        tokens = options.get("max_num_batched_tokens", tokens)
        chosen = {
            "max_num_batched_tokens": tokens, "max_num_seqs": min(seats, tokens),
            "async_scheduling": True, "enable_prefix_caching": True,
        }  # fmt: skip
        of_version = {} if version is None else VERSIONS.get(version)
        if of_version is None:
            raise UnknownNameError("vLLM version", str(version), VERSIONS)
        return cls(**{**of_version, **chosen, **options})

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            _at_least(name, getattr(self, name), 1)
        if self.max_num_batched_tokens > MOST_BATCHED_TOKENS:
            raise InputError(
                f"max_num_batched_tokens may be up to {MOST_BATCHED_TOKENS}, not "
                f"{self.max_num_batched_tokens}"
            )
        for option in fields(self):
            value = getattr(self, option.name)
            if option.type == "bool" and not isinstance(value, bool):
                raise InputError(f"{option.name} must be true or false, not {value!r}")
        for name in ("num_gpu_blocks", "max_model_len"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        if (self.num_gpu_blocks or 0) > MOST_BLOCKS:
            raise InputError(
                f"num_gpu_blocks may be up to {MOST_BLOCKS}, not {self.num_gpu_blocks}"
            )
        _at_least("long_prefill_token_threshold", self.long_prefill_token_threshold, 0)
        number = isinstance(self.watermark, int | float) and not isinstance(self.watermark, bool)
        if not (number and 0 <= self.watermark < 1):
            raise InputError(f"watermark must be at least 0 and below 1, not {self.watermark!r}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InputError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs}), as in vLLM"
            )


def serve_batch(memory_gib: float, a100: bool) -> tuple[int, int]:
    """Sequences and tokens of an iteration that vLLM's API server allows by itself on a GPU."""
    return (1024, 8192) if memory_gib >= 70 and not a100 else (256, 2048)


def differences(engine: Engine) -> str:
    """The options in which an engine differs from the defaults here, in words."""
    plain = Engine()
    found = {f.name: getattr(engine, f.name) for f in fields(Engine)}
    return ", ".join(
        (name if value is True else f"no {name}" if value is False else f"{name} {value:,}")
        for name, value in found.items()
        if value != getattr(plain, name)
    )


def engine_of(engine: Engine | Mapping[str, Any] | None) -> Engine:
    """An engine from its options by name; unknown ones are errors."""
    if isinstance(engine, Engine):
        return engine
    allowed = [field.name for field in fields(Engine)]
    for name in engine or {}:
        if name not in allowed:
            raise UnknownNameError("engine option", name, allowed)
    return Engine(**(engine or {}))


def _at_least(name: str, value: Any, least: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole and least <= value <= MOST):
        raise InputError(
            f"{name} must be a whole number of at least {least} and up to {MOST}, not {value!r}"
        )
