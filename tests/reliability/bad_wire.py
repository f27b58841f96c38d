"""Sending a request as gRPC (raw or typed contents) or HTTP (JSON or binary tensors), and reading what comes back."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor

from brats_ldm_client._error_map import map_error
from brats_ldm_client._errors import InvalidRequest
from reliability.bad_requests import STREAM, Ask
from server.channel import DIRECT
from server.health import BUSY

PROTOCOLS = ("raw", "typed", "json", "binary")
CONTENTS = {"BOOL": "bool_contents", "INT64": "int64_contents", "UINT64": "uint64_contents", "FP32": "fp32_contents",
            "FP16": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents"}  # fmt: skip
REFUSALS = {"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"}
JSON_PARSER = (
    *("failed to parse the request JSON", "Unable to parse", "Unable to set", "failed to get request params"),
    "Failed to parse 'data' field",  # 26.07
)
"""How Triton's JSON reader begins what it answers with status 500, where 400 would be right."""
PROTOBUF_PARSER = "Unable to parse request"
"""What gRPC says with code INTERNAL of bytes that are no message."""
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Reply:
    """kind: "answer", "refusal", "refusal by a parser", "internal error", "hang", "busy" or "no connection"."""

    kind: str
    text: str = ""
    outputs: Arrays = field(default_factory=dict)


class Wire:
    """Connections to one server; may be used by several threads."""

    def __init__(self, grpc_url: str, http_url: str, timeout: float = 10.0) -> None:
        self._channel = grpc.insecure_channel(grpc_url, options=DIRECT)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._http_url, self._timeout = http_url, timeout

    def close(self) -> None:
        self._channel.close()

    def send(self, ask: Ask, protocol: str) -> Reply:
        if protocol in ("json", "binary"):
            return self.post(*_http_body(ask, protocol == "binary"), path=_path(ask))
        return self.call(message_of(ask, protocol == "raw"))

    def call(self, message: Any) -> Reply:
        """One gRPC request, as a stream where the model is one."""
        try:
            if message.model_name != STREAM:
                return Reply("answer", outputs=_read(self._stub.ModelInfer(message, timeout=self._timeout)))
            responses = list(self._stub.ModelStreamInfer(iter([message]), timeout=self._timeout))
        except grpc.RpcError as error:
            return _failure(error.code().name, error.details() or "")
        if not responses:
            return Reply("internal error", "the stream has ended without a word")
        last = responses[-1]
        if last.error_message:
            return _stream_failure(last.error_message)
        return Reply("answer", outputs=_read(last.infer_response))

    def call_bytes(self, content: bytes) -> Reply:
        """A unary gRPC request of any bytes; an answer is not read."""
        call = self._channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        try:
            call(content, timeout=self._timeout)
        except grpc.RpcError as error:
            return _failure(error.code().name, error.details() or "")
        return Reply("answer")

    def post(
        self, body: bytes, headers: dict[str, str], path: str = "/v2/models/mri_ldm/infer", read: bool = True
    ) -> Reply:
        """One HTTP request; an answer is not looked at unless `read`."""
        connection = http.client.HTTPConnection(self._http_url, timeout=self._timeout)
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            content = response.read()
        except TimeoutError:
            return Reply("hang")
        except (OSError, http.client.HTTPException) as error:
            return Reply("no connection", repr(error))
        finally:
            connection.close()
        if response.status == 200 and not read:
            return Reply("answer")
        if response.status == 200:
            size = response.headers.get("Inference-Header-Content-Length")
            return Reply("answer", outputs=_read_http(content, int(size) if size else len(content)))
        return _http_failure(response.status, content.decode(errors="replace"))


def _failure(code: str, text: str) -> Reply:
    if code in REFUSALS:
        return Reply("refusal", text)
    if text == PROTOBUF_PARSER:
        return Reply("refusal by a parser", text)
    if code == "DEADLINE_EXCEEDED":
        return Reply("hang", text)
    if code == "UNAVAILABLE":
        return Reply("busy" if text.startswith(BUSY) else "no connection", text)
    return Reply("internal error", f"{code}: {text}")


def _stream_failure(text: str) -> Reply:
    """An error on a stream has no code: what the client library makes of it is what counts."""
    error = map_error(_Worded(text), url="", model=STREAM, timeout=1)
    if isinstance(error, InvalidRequest) or "unknown model" in text:
        return Reply("refusal", text)
    return Reply("busy" if text.startswith(BUSY) else "internal error", text)


class _Worded(Exception):
    """What tritonclient raises for an error on a stream: words only."""


def _http_failure(status: int, text: str) -> Reply:
    if status in (400, 404):
        return Reply("refusal", text)
    if status == 503:
        return Reply("busy", text)
    if status == 500 and any(words in text for words in JSON_PARSER):
        return Reply("refusal by a parser", text)
    return Reply("internal error", f"{status}: {text}")


def message_of(ask: Ask, raw: bool) -> Any:
    message = service_pb2.ModelInferRequest(model_name=ask.model, model_version=ask.version)
    for tensor in ask.tensors:
        described = message.inputs.add(
            name=tensor.name, datatype=tensor.datatype if tensor.label is None else tensor.label, shape=tensor.shape
        )
        if raw:
            message.raw_input_contents.append(tensor.raw())
        else:
            contents = CONTENTS.get(tensor.datatype, "uint_contents" if tensor.datatype[0] == "U" else "int_contents")
            getattr(described.contents, contents).extend(tensor.values)
    for name in ask.outputs:
        message.outputs.add(name=name)
    for name, value in ask.parameters.items():
        kind = "string_param" if isinstance(value, str) else "int64_param"
        setattr(message.parameters[name], kind, value)
    return message


def _path(ask: Ask) -> str:
    return f"/v2/models/{ask.model}{f'/versions/{ask.version}' if ask.version else ''}/infer"


def _http_body(ask: Ask, binary: bool) -> tuple[bytes, dict[str, str]]:
    inputs, contents = [], []
    for tensor in ask.tensors:
        described: dict[str, Any] = {
            "name": tensor.name, "datatype": tensor.datatype if tensor.label is None else tensor.label,
            "shape": list(tensor.shape),
        }  # fmt: skip
        if binary:
            contents.append(tensor.raw())
            described["parameters"] = {"binary_data_size": len(contents[-1])}
        else:
            # Latin-1 keeps bytes that are no text until the JSON is bytes itself.
            described["data"] = [v.decode("latin-1") if isinstance(v, bytes) else v for v in tensor.values]
        inputs.append(described)
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in ask.outputs]
    record = {"inputs": inputs, "outputs": outputs, **({"parameters": ask.parameters} if ask.parameters else {})}
    text = json.dumps(record, ensure_ascii=False).encode("latin-1")
    headers = {"Content-Type": "application/json"}
    return text + b"".join(contents), headers | ({"Inference-Header-Content-Length": str(len(text))} if binary else {})


def _read(response: Any) -> Arrays:
    outputs = {}
    for tensor, content in zip(response.outputs, response.raw_output_contents, strict=True):
        outputs[tensor.name] = _array(tensor.datatype, list(tensor.shape), content)
    return outputs


def _read_http(content: bytes, header: int) -> Arrays:
    outputs, place = {}, header
    for tensor in json.loads(content[:header])["outputs"]:
        size = tensor["parameters"]["binary_data_size"]
        outputs[tensor["name"]] = _array(tensor["datatype"], tensor["shape"], content[place : place + size])
        place += size
    return outputs


def _array(datatype: str, shape: list[int], content: bytes) -> np.ndarray[Any, Any]:
    kinds = {"FP32": np.float32, "INT32": np.int32}
    flat = deserialize_bytes_tensor(content) if datatype == "BYTES" else np.frombuffer(content, kinds[datatype])
    return flat.reshape(shape)
