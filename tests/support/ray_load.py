"""Load for a service: clients that count the outcomes, and a device that delivers pictures."""

import collections
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
from numpy.typing import NDArray

from runtime import EdgeEncoder
from runtime.delivery.sender import Encoded, Endpoint, deliver
from runtime.delivery.spool import Spool, key_of
from runtime.errors import ServerAwayError

HANG_SECONDS = 30.0


class Sample(NamedTuple):
    data: bytes
    class_index: int
    probability: float


class Load:
    """Clients that send feature files one after another, and count the outcomes."""

    def __init__(self, url: str, samples: list[Sample], clients: int = 6):
        self.url, self.samples = url, samples
        self.phase = "before"
        self.outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
        self.wrong: list[str] = []
        self.slowest = 0.0
        self._lock, self._end = threading.Lock(), threading.Event()
        self._threads = [
            threading.Thread(target=self._client, args=(number,)) for number in range(clients)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(HANG_SECONDS + 10)
        assert not any(thread.is_alive() for thread in self._threads)

    def count(self, outcome: str, phase: str | None = None) -> int:
        return sum(
            number
            for (when, what), number in self.outcomes.items()
            if what == outcome and phase in (None, when)
        )

    def _client(self, number: int) -> None:
        with httpx.Client(timeout=HANG_SECONDS) as client:
            while not self._end.is_set():
                sample = self.samples[number % len(self.samples)]
                number += 1
                start = time.monotonic()
                outcome = self._send(client, sample)
                with self._lock:
                    self.outcomes[self.phase, outcome] += 1
                    self.slowest = max(self.slowest, time.monotonic() - start)

    def _send(self, client: httpx.Client, sample: Sample) -> str:
        try:
            response = client.post(f"{self.url}/v1/classify", content=sample.data)
        except httpx.TimeoutException:
            return "hung"
        except httpx.TransportError as error:
            return type(error).__name__
        if response.status_code != 200:
            return str(response.status_code)
        best = response.json()["classes"][0]
        if (
            best["class_index"] != sample.class_index
            or not abs(best["probability"] - sample.probability) <= 1e-4
        ):
            self.wrong.append(response.text)
            return "wrong"
        return "right"


class Device:
    """A device that delivers parts of the demo's picture, one after another, as edge-send does."""

    def __init__(self, url: str, spool: Path, picture: NDArray[np.uint8], encoder: EdgeEncoder):
        self.sent: dict[str, bytes] = {}
        self._url, self._spool, self._picture, self._encoder = url, spool, picture, encoder
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._deliver)

    def __enter__(self) -> "Device":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(120)
        assert not self._thread.is_alive()

    def _pictures(self) -> Iterator[Encoded]:
        while not self._end.wait(0.2):
            top, left = divmod(3 * len(self.sent), 400)
            data = self._encoder.encode(self._picture[top : top + 224, left : left + 224])
            self.sent[key_of(data)] = data
            yield Encoded(f"picture {len(self.sent)}", data)

    def _deliver(self) -> None:
        with contextlib.suppress(ServerAwayError), Spool(self._spool) as spool:
            for _ in deliver(spool, Endpoint(self._url, in_flight=2), self._pictures()):
                pass
