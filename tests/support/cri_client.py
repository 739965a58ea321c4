"""A client of the Container Runtime Interface, as the kubelet is one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # its handlers hinder subprocess

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from protos.cri import runtime_pb2

CALL_TIMEOUT = 60.0
"""Seconds for a call; a pod's VM boots within it without hardware virtualization."""


class CriError(Exception):
    """A call that failed.

    Params: ``code`` is gRPC's name for the status, such as ``NOT_FOUND``.
    """

    def __init__(self, call: str, code: str, text: str) -> None:
        super().__init__(f"{call}: {code}: {text}")
        self.code = code
        self.text = text


class CriClient:
    """Calls of runtime.v1's two services by their names.

    >>> client.call("Version")            # doctest: +SKIP
    >>> client.call("RunPodSandbox", config=..., runtime_handler="katapy")  # doctest: +SKIP
    """

    def __init__(self, address: Path) -> None:
        self._channel = grpc.insecure_channel(
            f"unix://{address}", options=[("grpc.enable_http_proxy", 0)]
        )
        self._calls = {
            method.name: self._prepare(service.full_name, method)
            for service in runtime_pb2.DESCRIPTOR.services_by_name.values()
            for method in service.methods
        }

    def _prepare(self, service: str, method: Any) -> tuple[type[Message], Any]:
        request = GetMessageClass(method.input_type)
        call = self._channel.unary_unary(
            f"/{service}/{method.name}",
            request_serializer=request.SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return request, call

    def call(self, name: str, *, timeout_s: float = CALL_TIMEOUT, **fields: Any) -> Any:
        """Make one call with a request of these fields.

        Params: ``timeout_s`` in seconds; a request's own field ``timeout`` is another thing.
        Raises: CriError.
        """
        request, call = self._calls[name]
        try:
            return call(request(**fields), timeout=timeout_s)
        except grpc.RpcError as error:
            raise CriError(name, error.code().name, error.details() or "") from None

    def close(self) -> None:
        """Give the connection back."""
        self._channel.close()
