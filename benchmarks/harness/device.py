"""How long a device takes: the cost model of a server, for simulations and for networks that wait."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """A call of K steps of n rows takes call + K * (base + row * n) seconds, decoding an image `decode`."""

    base: float
    row: float
    decode: float
    call: float = 0.0

    def step(self, rows: int, count: int = 1) -> float:
        """Seconds of a UNet call of `count` steps."""
        return self.call + count * (self.base + self.row * rows)

    def slower(self, times: float) -> Device:
        """A device that takes so many times as long."""
        return Device(self.base * times, self.row * times, self.decode * times, self.call * times)
