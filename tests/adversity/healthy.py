"""A well-behaved caller in a process of its own, so that no attacker's interpreter slows it.

`healthy.py CLIENT ADDRESS EVERY_S REQUEST ANSWER [CA]` calls once in EVERY_S seconds, over one connection, as long as
its input is open: REQUEST is a ModelInfer message in hex, ANSWER what its answer must end with; with CA, a PEM file, it
speaks TLS. At each byte of input it prints, as JSON, the seconds of every call since the one before: `infer` those of
inference, `live` those of ServerLive, which is every 16th call. It ends with an error as soon as an answer is wrong.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import sys
import time

INFER = "/inference.GRPCInferenceService/ModelInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"


def main(client, address, every_s, request, expected, ca=None):
    spec = importlib.util.spec_from_file_location("http2_client", client)
    http2 = sys.modules["http2_client"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(http2)
    times = {"infer": [], "live": []}
    with http2.connect(address, tls=http2.tls_context(ca) if ca else None) as peer:
        for number in range(1 << 60):
            kind, path, body = ("infer", INFER, request) if number % 16 else ("live", LIVE, b"")
            begin = time.perf_counter()
            answer = peer.call(path, body)
            times[kind].append(time.perf_counter() - begin)
            (message,) = answer.messages or [b""]
            right = answer.code == 0 and (message.endswith(expected) if kind == "infer" else message == b"\x08\x01")
            assert right, (path, answer.code, answer.message, message)
            peer.streams.clear()
            peer.frames.clear()
            if select.select([0], [], [], every_s)[0]:
                if not os.read(0, 1):
                    return
                print(json.dumps(times), flush=True)
                times = {"infer": [], "live": []}


if __name__ == "__main__":
    main(
        sys.argv[1],
        sys.argv[2],
        float(sys.argv[3]),
        bytes.fromhex(sys.argv[4]),
        bytes.fromhex(sys.argv[5]),
        *sys.argv[6:],
    )
