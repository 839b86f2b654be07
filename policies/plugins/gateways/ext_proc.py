"""The Endpoint Picker Protocol 1.0: Envoy's external processing, one gRPC stream a request.

The gateway sends a request's headers and body and waits for where it is to go: the header
``x-gateway-destination-endpoint``, and dynamic metadata ``envoy.lb`` with the same key. Bodies come
FULL_DUPLEX_STREAMED (the protocol's mode), or as the gateway says in its first message; they go
back as they came. (kubernetes-sigs/gateway-api-inference-extension, proposal 004.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from google.protobuf.message import DecodeError

from lengthwise.policies.plugins import client
from lengthwise.policies.plugins.gateways.picker import Pick, Picker, Refusal

HEADER = "x-gateway-destination-endpoint"
METADATA = "envoy.lb"
SERVED = "x-gateway-destination-endpoint-served"
SUBSET, SUBSET_KEY = "envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset"
PEER = "upstream.address"  # an attribute that Envoy can be asked to tell
NAME = "envoy.service.ext_proc.v3.ExternalProcessor"
TYPES = {
    413: "request_too_large", 429: "rate_limit_exceeded", 503: "service_unavailable",
}  # fmt: skip
BODY = ProcessingMode
WHOLE_FIRST = (BODY.FULL_DUPLEX_STREAMED, BODY.BUFFERED, BODY.BUFFERED_PARTIAL)
MOST_MESSAGE = 64 * 2**10  # bytes of body that Envoy takes back in one message


@dataclass(frozen=True)
class Limits:
    """What one picker holds at once; beyond it requests are refused."""

    body: int = 16 * 2**20  # bytes of one request: 413
    streams: int = 2048  # requests: 429
    memory: int = 256 * 2**20  # bytes of bodies that wait for their end: 429


class ProtocolError(Exception):
    """Messages that no gateway sends; the stream ends in INVALID_ARGUMENT."""


class ExternalProcessor:
    """The gRPC service, for ``grpc.aio``; ``handler`` is what a server takes."""

    def __init__(self, picker: Picker, limits: Limits | None = None) -> None:
        self._picker = picker
        self.limits = limits or Limits()
        self.streams = 0
        self.held = 0  # bytes of bodies

    @property
    def handler(self) -> Any:
        """Messages come as bytes, so that those that are none end in an answer of ours."""
        method = grpc.stream_stream_rpc_method_handler(
            self._process, None, pb.ProcessingResponse.SerializeToString
        )
        return grpc.method_handlers_generic_handler(NAME, {"Process": method})

    async def _process(self, requests: Any, context: Any) -> None:
        """One request of the gateway's, from its headers to the end of its answer."""
        metrics = self._picker.metrics
        stream = _Stream(self, self._picker)
        self.streams += 1
        metrics.under_way.set(self.streams)
        failed = False
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                for response in await stream.take(_decoded(message)):
                    await context.write(response)
                if stream.over:
                    break
        except ProtocolError as error:
            failed = True
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            # however it ends, nothing of it stays counted
            self.streams -= 1
            stream.close()
            metrics.under_way.set(self.streams)
            end = "answered" if stream.over or stream.settled else "broken off"
            metrics.broken.labels("protocol error" if failed else end).inc()


class _Stream:
    """One gRPC stream: messages in, messages out."""

    def __init__(self, service: ExternalProcessor, picker: Picker) -> None:
        self._service, self._picker = service, picker
        self._headers: dict[str, str] | None = None
        self._subset: frozenset[str] | None = None
        self._request_mode: int = BODY.FULL_DUPLEX_STREAMED
        self._response_mode: int = BODY.FULL_DUPLEX_STREAMED
        self._chunks: list[bytes] = []
        self._held = 0
        self._deferred = False  # the answer to the headers waits for the body
        self._pick: Pick | None = None
        self._refusal: Refusal | None = None
        self.over = False  # the gateway was told all, and to refuse the request
        self.settled = False  # the answer was seen to its end, or will not be shown

    async def take(self, message: pb.ProcessingRequest) -> list[pb.ProcessingResponse]:
        """What the gateway gets for a message, which may be nothing yet."""
        kind = message.WhichOneof("request")
        if kind is None:
            raise ProtocolError("a message without a request")
        try:
            made: list[pb.ProcessingResponse] = await getattr(self, f"_{kind}")(message)
        except Refusal as refusal:
            self._refusal = refusal
            if self._picker.options.dry_run:
                return self._left_alone(kind, message)
            self.over = True
            return [_refused(refusal)]
        if message.observability_mode:  # nobody waits for an answer
            return []
        return made

    def close(self) -> None:
        """The stream has ended."""
        self._drop()
        if self._pick is not None:
            self._picker.ended(self._pick)
        if self._picker.options.dry_run or self._picker.options.log_requests:
            name = (self._headers or {}).get("x-request-id", "")
            if self._pick is not None:
                self._picker.tell(self._pick, name)
            elif self._refusal is not None:
                self._picker.tell_refused(self._refusal, name)

    # The request

    async def _request_headers(self, message: pb.ProcessingRequest) -> list[pb.ProcessingResponse]:
        if self._headers is not None:
            raise ProtocolError("headers came twice")
        if self._service.streams > self._service.limits.streams:
            self._picker.metrics.requests.labels("429").inc()
            raise Refusal(429, "too many requests at once", 1.0)
        said = message.request_headers
        self._headers = _lower(said.headers)
        self._subset = _subset(message.metadata_context.filter_metadata)
        if message.HasField("protocol_config"):
            self._request_mode = message.protocol_config.request_body_mode
            self._response_mode = message.protocol_config.response_body_mode
        length = client.number(self._headers.get("content-length"))
        if length is not None and length > self._service.limits.body:
            self._too_long()
        if not said.end_of_stream and self._request_mode in WHOLE_FIRST:
            self._deferred = True
            if self._request_mode == BODY.FULL_DUPLEX_STREAMED:
                return []
            return [pb.ProcessingResponse(request_headers=pb.HeadersResponse())]
        return [await self._picked("request_headers")]

    async def _request_body(self, message: pb.ProcessingRequest) -> list[pb.ProcessingResponse]:
        if self._headers is None:
            raise ProtocolError("a body came before its headers")
        said = message.request_body
        if not self._deferred:  # it was picked before
            return [_passed("request_body", said, self._request_mode)]
        self._hold(said.body)
        ends = said.end_of_stream or self._request_mode != BODY.FULL_DUPLEX_STREAMED
        return await self._whole() if ends else []

    async def _request_trailers(self, message: pb.ProcessingRequest) -> list[pb.ProcessingResponse]:
        made = await self._whole() if self._deferred else []
        return [*made, pb.ProcessingResponse(request_trailers=pb.TrailersResponse())]

    async def _whole(self) -> list[pb.ProcessingResponse]:
        """The body is there: where the request goes, and the body again."""
        self._deferred = False
        if self._request_mode != BODY.FULL_DUPLEX_STREAMED:
            return [await self._picked("request_body")]
        return [await self._picked("request_headers"), *self._back(ends=True)]

    async def _picked(self, kind: str) -> pb.ProcessingResponse:
        body = b"".join(self._chunks)
        assert self._headers is not None
        pick = self._pick = await self._picker.pick(body, self._headers, self._subset)
        response = pb.ProcessingResponse()
        common = getattr(response, kind).response
        if self._picker.options.dry_run:
            common.status = pb.CommonResponse.CONTINUE
            return response
        option = common.header_mutation.set_headers.add()
        option.header.key, option.header.raw_value = HEADER, pick.header.encode()
        option.append_action = option.OVERWRITE_IF_EXISTS_OR_ADD
        common.clear_route_cache = True
        response.dynamic_metadata.get_or_create_struct(METADATA)[HEADER] = pick.header
        return response

    def _left_alone(self, kind: str, message: pb.ProcessingRequest) -> list[pb.ProcessingResponse]:
        """What goes on in a dry run that would have been refused: all that came, as it came."""
        if kind == "request_headers":
            return [pb.ProcessingResponse(request_headers=pb.HeadersResponse())]
        self._deferred = False
        made = []
        if self._request_mode != BODY.FULL_DUPLEX_STREAMED:
            made = [_passed(kind, message.request_body, self._request_mode)]
        else:
            ends = kind == "request_body" and message.request_body.end_of_stream
            made = [pb.ProcessingResponse(request_headers=pb.HeadersResponse()), *self._back(ends)]
        if kind == "request_trailers":
            made.append(pb.ProcessingResponse(request_trailers=pb.TrailersResponse()))
        return made

    def _back(self, ends: bool) -> list[pb.ProcessingResponse]:
        """The body that was held, in pieces that Envoy takes."""
        chunks = [
            chunk[start : start + MOST_MESSAGE]
            for chunk in self._chunks
            for start in range(0, len(chunk), MOST_MESSAGE)
        ] or [b""]
        self._drop()
        last = len(chunks) - 1
        return [
            _streamed("request_body", one, ends and at == last) for at, one in enumerate(chunks)
        ]

    def _hold(self, data: bytes) -> None:
        self._chunks.append(data)
        self._held += len(data)
        self._service.held += len(data)
        if self._held > self._service.limits.body:
            self._too_long()
        if self._service.held > self._service.limits.memory:
            self._picker.metrics.requests.labels("429").inc()
            raise Refusal(429, "too many bytes of requests at once", 1.0)

    def _too_long(self) -> None:
        self._picker.metrics.requests.labels("413").inc()
        raise Refusal(413, f"a request may have {self._service.limits.body} bytes")

    def _drop(self) -> None:
        self._service.held -= self._held
        self._held, self._chunks = 0, []

    # Its answer

    async def _response_headers(self, message: pb.ProcessingRequest) -> list[pb.ProcessingResponse]:
        said = message.response_headers
        if self._pick is not None:
            served = _served(message)
            if served is not None:
                self._picker.served_by(self._pick, served)
            status = client.number(_lower(said.headers).get(":status"))
            self._picker.answered(self._pick, int(status or 0))
        if said.end_of_stream:
            self._end()
        elif self._response_mode == BODY.NONE:
            self.settled = True  # the stream's end is the answer's, which nobody shows
        return [pb.ProcessingResponse(response_headers=pb.HeadersResponse())]

    async def _response_body(self, message: pb.ProcessingRequest) -> list[pb.ProcessingResponse]:
        said = message.response_body
        if self._pick is not None:
            self._pick.answer.feed(said.body)
        if said.end_of_stream:
            self._end()
        return [_passed("response_body", said, self._response_mode)]

    async def _response_trailers(
        self, message: pb.ProcessingRequest
    ) -> list[pb.ProcessingResponse]:
        self._end()
        return [pb.ProcessingResponse(response_trailers=pb.TrailersResponse())]

    def _end(self) -> None:
        """The answer is complete: its endpoint is free, even if the gateway stays a while."""
        self.settled = True
        if self._pick is not None:
            self._pick.answer.ended = True
            self._picker.ended(self._pick)


def _decoded(data: bytes) -> pb.ProcessingRequest:
    try:
        return pb.ProcessingRequest.FromString(data)
    except DecodeError as error:
        raise ProtocolError(f"no message of external processing: {error}") from None


def _passed(kind: str, said: pb.HttpBody, mode: int) -> pb.ProcessingResponse:
    """A piece of a body, as it came."""
    if mode == BODY.FULL_DUPLEX_STREAMED:
        return _streamed(kind, said.body, said.end_of_stream)
    response = pb.ProcessingResponse()
    getattr(response, kind).response.status = pb.CommonResponse.CONTINUE
    return response


def _streamed(kind: str, data: bytes, end: bool) -> pb.ProcessingResponse:
    response = pb.ProcessingResponse()
    piece = getattr(response, kind).response.body_mutation.streamed_response
    piece.body, piece.end_of_stream = data, end
    return response


def _refused(refusal: Refusal) -> pb.ProcessingResponse:
    response = pb.ProcessingResponse()
    said = response.immediate_response
    said.status.code = refusal.status
    error = {"message": str(refusal), "type": TYPES[refusal.status], "code": refusal.status}
    said.body = json.dumps({"error": error}).encode()
    said.details = "lengthwise"
    headers = {"content-type": "application/json"}
    if refusal.retry_after:
        headers["retry-after"] = str(refusal.retry_after)
    for name, value in headers.items():
        option = said.headers.set_headers.add()
        option.header.key, option.header.raw_value = name, value.encode()
        option.append_action = option.OVERWRITE_IF_EXISTS_OR_ADD
    return response


def _lower(headers: Any) -> dict[str, str]:
    """Headers by their names in lower case, the first of each."""
    found: dict[str, str] = {}
    for one in headers.headers:
        value = one.raw_value.decode("utf-8", "replace") if one.raw_value else one.value
        found.setdefault(one.key.lower(), value)
    return found


def _subset(metadata: Mapping[str, Any]) -> frozenset[str] | None:
    """The endpoints that the gateway allows; None where it says nothing."""
    if SUBSET not in metadata or SUBSET_KEY not in metadata[SUBSET].fields:
        return None
    said = metadata[SUBSET].fields[SUBSET_KEY]
    if said.WhichOneof("kind") == "list_value":
        return frozenset(one.string_value.strip() for one in said.list_value.values)
    return frozenset(filter(None, (one.strip() for one in said.string_value.split(","))))


def _served(message: pb.ProcessingRequest) -> str | None:
    """Who served, in the gateway's words; no header of the answer's counts."""
    metadata = message.metadata_context.filter_metadata
    if METADATA in metadata and SERVED in metadata[METADATA].fields:
        return str(metadata[METADATA].fields[SERVED].string_value)
    for struct in message.attributes.values():
        if PEER in struct.fields:
            return str(struct.fields[PEER].string_value)
    return None
