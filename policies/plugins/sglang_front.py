"""SGLang's front, where requests are tokenized: their lengths are predicted, judged and recorded.

All tensor-parallel ranks schedule for themselves and must agree. So one process, SGLang's
``TokenizerManager``, asks the predictor and hears how answers end; what it says travels with the
request's sampling parameters, and every rank reads the same numbers.
"""

from __future__ import annotations

import array
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lengthwise.errors import InputError
from lengthwise.policies.plugins import client
from lengthwise.policies.plugins.calls import Call
from lengthwise.policies.plugins.known import known_of, with_chat
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.part import KNOWN
from lengthwise.policies.plugins.prompt_lengths import Expected, PromptLengths
from lengthwise.policies.plugins.record import Rows
from lengthwise.policies.plugins.settings import Settings
from lengthwise.served_text import PromptReader

OURS = "lengthwise_"  # names in ``custom_params`` that begin so come from here
TOKENS = OURS + "tokens"  # what a request's length is held to be
CURVE = OURS + "curve_"  # and, before a feature's name, its curve at ``prediction.EDGES``
ENDED = ("stop", "length")  # SGLang's reasons for which an answer ends by itself


class Noted(NamedTuple):
    """What is kept of a request until it ends."""

    expected: Expected
    row: dict[str, Any]  # of the record, but for how it ended


class Front:
    """Hooks of SGLang's ``TokenizerManager``; ``features`` are those that the policy reads."""

    def __init__(self, settings: Settings, features: Sequence[str]) -> None:
        self._settings, self._features = settings, features
        self._lengths: PromptLengths | None = None
        self._record: Rows | None = None
        self.counters: Counters | None = None  # SGLang says where Prometheus writes, and that late

    def begin(self, result: None, manager: Any, *args: Any, **kwargs: Any) -> None:
        """After ``TokenizerManager.__init__``: loads the predictor and opens the record.

        Raises ``InputError`` for a predictor that can't be loaded, and a record that can't be
        written.
        """
        settings, self.counters = self._settings, Counters()
        folder, told = settings.predictor_folder, manager.server_args
        if folder and manager.tokenizer is None:
            raise InputError(f"predictor {folder!r} reads texts: not with --skip-tokenizer-init")
        reader = PromptReader(manager.tokenizer) if folder else None
        self._lengths = PromptLengths(
            folder or None, settings.predict_timeout_s, settings.default_tokens, self.counters,
            read=lambda call: _read(call, reader), features=self._features,
        )  # fmt: skip
        if settings.record:
            tokenizer = getattr(told, "tokenizer_path", None) or told.model_path
            same = {"model": str(told.model_path), "tokenizer": str(tokenizer)}
            self._record = Rows(settings.record, settings.record_prompts, same, self.counters)

    async def tokenized(
        self, original: Any, manager: Any, obj: Any, *args: Any, **rest: Any
    ) -> Any:
        """Goes around ``TokenizerManager._tokenize_one_request``."""
        made = await original(manager, obj, *args, **rest)
        await self._note(manager, obj, made)
        return made

    async def tokenized_batch(
        self, original: Any, manager: Any, size: int, obj: Any, *args: Any, **rest: Any
    ) -> Any:
        """Goes around ``TokenizerManager._batch_tokenize_and_process``."""
        made = await original(manager, size, obj, *args, **rest)
        for index, one in enumerate(made):
            await self._note(manager, obj[index], one)
        return made

    def output(self, manager: Any, received: Any, *args: Any, **kwargs: Any) -> None:
        """Before ``TokenizerManager._handle_batch_output``: some requests may have ended."""
        assert self.counters is not None
        try:
            for index, reason in enumerate(received.finished_reasons):
                state = manager.rid_to_state.get(received.rids[index]) if reason else None
                noted = getattr(getattr(state, "obj", None), "lengthwise", None)
                if noted is not None:
                    self._ended(noted, received.rids[index], reason, received, index)
        except Exception as error:  # of SGLang's, which may rename what is read here
            self.counters.warn("plugin-error", f"how requests end is not heard: {error!r}")
            self.counters.add("failed_steps", "shadow")

    def _ended(self, noted: Noted, rid: Any, reason: Any, received: Any, index: int) -> None:
        generated = int(received.completion_tokens[index])
        if generated < 1 or self._lengths is None:
            return
        kind = reason.get("type", "error") if isinstance(reason, Mapping) else "error"
        if kind in ENDED:
            self._lengths.ended(noted.expected, generated)
        if self._record is not None:
            self._record.put({
                **noted.row, "request_id": client.text(rid), "output_tokens": generated,
                "finish_reason": kind if kind in (*ENDED, "abort") else "error",
            })  # fmt: skip

    async def _note(self, manager: Any, obj: Any, made: Any) -> None:
        """Says with a request how long it is held to be, and keeps that until it ends.

        ``obj``: what came, copies of which stand for it where several answers were asked for;
        ``made``: what goes to the scheduler. Never raises.
        """
        assert self.counters is not None
        if self._lengths is None or getattr(obj, "lengthwise", None) is not None:
            return
        if not hasattr(getattr(made, "sampling_params", None), "custom_params"):
            return  # SGLang's requests for embeddings generate nothing
        try:
            parameters, sent = made.sampling_params, _object(made.sampling_params.custom_params)
            if any(str(name).startswith(OURS) for name in sent):  # what only we may say
                sent = {n: value for n, value in sent.items() if not str(n).startswith(OURS)}
                parameters.custom_params = sent
            call = self._call(manager, obj, made)
            expected = await self._lengths.of(call)
            obj.lengthwise = Noted(expected, _row(call, expected))
            if self._settings.predictor_folder:
                curves = {CURVE + name: [*map(float, curve.values)]
                          for name, curve in expected.curves.items()}  # fmt: skip
                # a new dict: the client's may serve several requests
                parameters.custom_params = {**sent, TOKENS: float(expected.answer), **curves}
        except Exception as error:
            self.counters.warn("plugin-error", f"a request is not predicted: {error!r}")
            self.counters.add("fallbacks", "plugin")

    def _call(self, manager: Any, obj: Any, made: Any) -> Call:
        assert self.counters is not None
        parameters, tokens = made.sampling_params, made.input_ids
        sent = _object(parameters.custom_params)
        told = None
        if self._settings.client_lengths and sent.get("predicted_tokens") is not None:
            told = client.length(sent["predicted_tokens"])
            if told is None:
                self.counters.add("ignored", "predicted_tokens")
        most = client.number(getattr(parameters, "max_new_tokens", None))
        room = client.number(getattr(manager, "context_len", None))
        limit = math.inf if most is None else most
        if room is not None and tokens is not None:
            limit = min(limit, room - len(tokens))
        limit = max(limit, 1.0)
        tools = client.number(sent.get("tools"))
        known = known_of(
            sent, {name: getattr(obj, name, None) for name in ("session_id", "cache_salt")},
            model=getattr(manager, "served_model_name", None),
            numbers={
                "temperature": parameters.temperature, "top_p": parameters.top_p,
                "max_tokens": limit,
            },
            tools=None if tools is None else tools != 0,
            json_schema=getattr(parameters, "json_schema", None) is not None,
        )  # fmt: skip
        return Call("", "", told, limit, known, tokens)


def _read(call: Call, reader: PromptReader | None) -> Call:
    """With what a predictor reads of its tokens; embeddings have none, and fail."""
    if not call.tokens or reader is None:
        raise ValueError("a prompt without tokens")
    served = reader.served(call.tokens)
    return call._replace(asked=served.text, known=with_chat(call.known, served.told))


def _row(call: Call, expected: Expected) -> dict[str, Any]:
    """A row of the record, but for how the request ended."""
    told = None if math.isnan(expected.said) else expected.said
    source = expected.source if expected.source != "default" else "abstained"
    return {
        "arrival_s": time.time(),
        "prompt_token_ids": None if call.tokens is None else array.array("i", call.tokens),
        "prompt_tokens": int(expected.prompt),
        "predicted_tokens": told,
        "predicted_by": None if told is None else source,
        "max_tokens": None if math.isinf(call.limit) else min(int(call.limit), 2**63 - 1),
        **{name: call.known.get(name) for name in KNOWN},
    }


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
