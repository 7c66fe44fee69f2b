"""A well-behaved caller in a process of its own, so that no attacker's interpreter slows it.

`healthy.py CLIENT ADDRESS EVERY_S` reads a request of the model `double` from its first line (hex, as the answer's last
bytes that must come on the second) and calls once in EVERY_S seconds, over one connection, as long as its input is
open. At each further line it prints, as JSON, the seconds of every call since the line before: `infer` those of
inference, `live` those of ServerLive, which is every 16th call. It ends with an error as soon as an answer is wrong.
"""

from __future__ import annotations

import importlib.util
import json
import select
import sys
import time

INFER = "/inference.GRPCInferenceService/ModelInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"


def main(client, address, every_s):
    spec = importlib.util.spec_from_file_location("http2_client", client)
    http2 = sys.modules["http2_client"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(http2)
    request, expected = (bytes.fromhex(sys.stdin.readline()) for _ in range(2))
    times = {"infer": [], "live": []}
    with http2.connect(address) as peer:
        for number in range(1 << 60):
            kind, path, body = ("infer", INFER, request) if number % 16 else ("live", LIVE, b"")
            begin = time.perf_counter()
            answer = peer.call(path, body)
            times[kind].append(time.perf_counter() - begin)
            (message,) = answer.messages or [b""]
            right = message.endswith(expected) if kind == "infer" else message == b"\x08\x01"
            assert right and answer.code == 0, (path, answer.code, answer.message, message)
            peer.streams.clear()
            peer.frames.clear()
            peer.link.setblocking(True)
            if select.select([sys.stdin], [], [], every_s)[0]:
                if not sys.stdin.readline():
                    return
                print(json.dumps(times), flush=True)
                times = {"infer": [], "live": []}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
