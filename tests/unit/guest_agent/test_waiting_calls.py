"""How a call that waits ends when nothing came: by its deadline, or with the agent."""

from __future__ import annotations

import pytest

from guest_agent.loop import Event, Loop, Nursery
from guest_agent.rpc import Server, Session, Spliced
from protos import lite
from protos.tables import kata_agent
from protos.tables import ttrpc as tables
from shim.ttrpc import status
from shim.ttrpc.framing import REQUEST, FrameDecoder, encode_frame

_SERVICE, _METHOD = "grpc.AgentService", "GetOOMEvent"


@pytest.mark.parametrize(
    ("timeout_ns", "code"), [(0, status.CANCELLED), (1_000_000, status.DEADLINE_EXCEEDED)]
)
def test_which_end_it_was(timeout_ns: int, code: int) -> None:
    loop = Loop()
    answers = FrameDecoder()
    codes: list[int] = []
    answered, called = Event(loop), Event(loop)

    async def write(_session: Session, parts: list[bytes | memoryview | Spliced]) -> None:
        for part in parts:
            assert isinstance(part, bytes)
            for _stream, _kind, _flags, payload in answers.feed(part):
                assert payload is not None
                codes.append(lite.decode(tables.Response, payload)["status"]["code"])
                answered.set()

    async def main() -> None:
        async with Nursery(loop) as nursery:
            server = Server(loop, nursery)
            never = Event(loop)

            async def wait(_request: object) -> None:
                called.set()
                await never.wait()

            server.add(
                {_SERVICE: {_METHOD: kata_agent.SERVICES[_SERVICE][_METHOD]}},
                {_METHOD: wait},
                frozenset({_METHOD}),
            )
            request = {"service": _SERVICE, "method": _METHOD, "timeout_nano": timeout_ns}
            frame = encode_frame(1, REQUEST, 0, lite.encode(tables.Request, request))
            Session(server, write).received(frame)
            await (answered if timeout_ns else called).wait()
            nursery.cancel()

    loop.run(main())
    loop.close()
    assert codes == [code]
