"""What a GPU draws, from NVML's energy counter, shared out by the device's time.

The counter tells millijoules since the driver was loaded. It is read a few times a second; what was drawn since the
last reading, divided by the seconds that passed or (where several engines share the GPU) by those that they computed,
whichever is more, is what a device-second draws until the next. So an idle GPU's draw is nobody's.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from penstock.logs import get_logger

READ_SECONDS: Final = 0.2
_MILLI: Final = 1e-3

log = get_logger(__name__)


class EnergyMeter:
    """Turns seconds of one device into joules. Thread-safe. `reason` says why it cannot, where it cannot."""

    def __init__(
        self,
        counter: Callable[[], float] | None,
        reason: str | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reason = reason
        self.total_joules = 0.0
        self._counter = counter
        self._clock = clock
        self._lock = threading.Lock()
        self._joules_per_second: float | None = None
        self._busy = 0.0
        self._read_at = clock()
        self._last = counter() if counter is not None else 0.0

    def joules(self, seconds: float) -> float | None:
        """What so much of the device's time drew; None where it is not measured."""
        with self._lock:
            self._busy += seconds
            if self._joules_per_second is None or self._clock() - self._read_at >= READ_SECONDS:
                self._read()
            return None if self._counter is None else seconds * (self._joules_per_second or 0.0)

    def _read(self) -> None:
        if self._counter is None:
            return
        try:
            now, joules = self._clock(), self._counter()
        except Exception as error:  # NVML's errors share no importable base where the package is missing
            self._counter, self.reason = None, f"the GPU's energy counter failed: {error}"
            log.warning("energy.lost", error=str(error))
            return
        drawn = joules - self._last
        self.total_joules += drawn
        span = max(now - self._read_at, self._busy)
        if span > 0:
            self._joules_per_second = drawn / span
        self._last, self._read_at, self._busy = joules, now, 0.0


class EnergyMeters:
    """One meter for each device of this worker, shared by all engines on it.

    `announce` is called with each that measures.
    """

    def __init__(self, announce: Callable[[str, EnergyMeter], None] = lambda _device, _meter: None) -> None:
        self._announce = announce
        self._meters: dict[str, EnergyMeter] = {}
        self._lock = threading.Lock()

    def of(self, device: str, device_uuid: str | None) -> EnergyMeter:
        """The meter of an engine's device."""
        with self._lock:
            name = device_uuid or device
            if name not in self._meters:
                self._meters[name] = meter = energy_meter(device, device_uuid)
                if meter.reason is None:
                    self._announce(name, meter)
            return self._meters[name]


def energy_meter(device: str, device_uuid: str | None) -> EnergyMeter:
    """The meter of the device that an engine computes on: one that measures, or one that says why it does not."""
    if device_uuid is None:
        return EnergyMeter(None, f"the energy of the device {device} is not measured")
    try:
        return EnergyMeter(_nvml_counter(device_uuid), None)
    except ImportError:
        return EnergyMeter(None, "the package nvidia-ml-py is not installed")
    except Exception as error:  # NVML's errors share no importable base where the package is missing
        log.warning("energy.not_measured", device=device, error=str(error))
        return EnergyMeter(None, f"NVML does not tell the energy of {device_uuid}: {error}")


def _nvml_counter(device_uuid: str) -> Callable[[], float]:
    """Reads the GPU's energy counter, in joules."""
    import pynvml  # here, because a machine without a GPU need not have it

    pynvml.nvmlInit()
    handle: Any = pynvml.nvmlDeviceGetHandleByUUID(device_uuid)
    read: Callable[[Any], int] = pynvml.nvmlDeviceGetTotalEnergyConsumption
    read(handle)  # what cannot be read says so now

    def joules() -> float:
        return read(handle) * _MILLI

    return joules
