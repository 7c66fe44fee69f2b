"""A TCP proxy in front of a unix socket that can misbehave, for tests of what happens when a store does.

open         bytes pass
black hole   requests are swallowed, nothing comes back
drip         replies come back one byte each 10 ms
cut          after so many bytes of a reply the connection is closed
stray        the reply is preceded by another one, as if somebody else's had been left on the connection
refused      nobody listens
weather      each piece of a reply meets what a seeded, shuffled deck deals: mostly nothing, a delay, dripping,
             an end in the middle, a reset, or oblivion; a hundred pieces meet each of them
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading

DECK = {"fair": 94, "delay": 2, "drip": 1, "cut": 1, "reset": 1, "oblivion": 1}


class Proxy:
    """Listens on a free port of loopback; `mode` may be changed at any time and holds for connections that are open."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self.mode = "open"
        self.cut_after = 10
        self.stray = b""
        self.seed = 0
        self.weather = dict.fromkeys(DECK, 0)
        self._dealing = threading.Lock()
        self._deck: list[str] = []
        self.accepted = 0
        self._listener = self._listen(0)
        self.port = self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port))
        self._run(self._accept, listener)
        return listener

    def _run(self, target, *arguments) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self.accepted += 1
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._upstream)
                self._sockets += [client, server]
                self._run(self._requests, client, server)
                self._run(self._replies, client, server)

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                if self.mode != "black hole":
                    server.sendall(data)
        self._close(client, server)

    def _replies(self, client: socket.socket, server: socket.socket) -> None:
        chance = random.Random(f"{self.seed}:{self.accepted}")
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                if self.mode == "weather":
                    if not self._endure(client, data, chance):
                        break
                elif self.mode == "cut":
                    client.sendall(data[: self.cut_after])
                    break
                else:
                    self._pass(client, data)
        self._close(client, server)

    def _endure(self, client: socket.socket, data: bytes, chance: random.Random) -> bool:
        """Pass a piece on as the weather is; False where the connection ends by it."""
        now = self._deal()
        if now == "delay":
            self._ended.wait(chance.uniform(0, 0.05))
        elif now == "drip":
            for _ in range(10):
                client.sendall(data[:1])
                data = data[1:]
                self._ended.wait(0.001)
        elif now == "cut":
            client.sendall(data[: chance.randrange(len(data))])
        elif now == "reset":
            client.sendall(data[: chance.randrange(len(data))])
            client.shutdown(socket.SHUT_RD)  # wakes the other thread
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        if now in {"fair", "delay", "drip"}:
            client.sendall(data)
        return now not in {"cut", "reset"}

    def _deal(self) -> str:
        """The next card; chance alone would leave a kind out of some campaigns."""
        with self._dealing:
            if not self._deck:
                chance = random.Random(f"{self.seed}:{sum(self.weather.values())}")
                self._deck = chance.sample(list(DECK), sum(DECK.values()), counts=list(DECK.values()))
            now = self._deck.pop()
            self.weather[now] += 1
            return now

    def _pass(self, client: socket.socket, data: bytes) -> None:
        if self.mode == "drip":
            for i in range(len(data)):
                client.sendall(data[i : i + 1])
                if self._ended.wait(0.01):
                    return
        else:
            client.sendall(self.stray + data if self.mode == "stray" else data)

    def _close(self, *ends: socket.socket) -> None:
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut_all(self) -> None:
        """Close every connection, as a restart does."""
        self._close(*self._sockets)

    def refuse(self) -> None:
        self._close(self._listener)
        self._listener.close()
        self.cut_all()

    def restore(self) -> None:
        """Be well again, on the same port."""
        self.mode = "open"
        if self._listener.fileno() < 0:
            self._listener = self._listen(self.port)

    def close(self) -> None:
        self._ended.set()
        self.refuse()
        for thread in self._threads:
            thread.join(10)
        for end in self._sockets:
            end.close()
