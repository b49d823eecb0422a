"""Joules from a counter of the device: what is drawn while it computes, shared by seconds, and no more."""

import sys
from types import SimpleNamespace

import pytest
from penstock_worker.energy import EnergyMeter, EnergyMeters, energy_meter


class Device:
    """Draws so many watts; its clock and counter stand still until they are told to move."""

    def __init__(self) -> None:
        self.now = 50.0
        self.drawn = 1000.0

    def run(self, seconds: float, *, watts: float) -> None:
        self.now += seconds
        self.drawn += seconds * watts

    def meter(self) -> EnergyMeter:
        return EnergyMeter(lambda: self.drawn, None, clock=lambda: self.now)


def test_a_busy_devices_energy_is_shared_whole() -> None:
    device = Device()
    meter = device.meter()
    joules = 0.0
    for _ in range(100):
        device.run(0.25, watts=400.0)
        joules += sum(meter.joules(share) or 0.0 for share in (0.05, 0.2))
    assert joules == pytest.approx(100 * 0.25 * 400, rel=0.02)
    assert meter.total_joules <= device.drawn - 1000


def test_what_an_idle_device_draws_is_nobodys() -> None:
    device = Device()
    meter = device.meter()
    device.run(100.0, watts=70.0)
    assert meter.joules(0.1) == pytest.approx(7.0)


def test_two_engines_on_a_device_do_not_both_pay_for_all_of_it() -> None:
    device = Device()
    meter = device.meter()
    joules = 0.0
    for _ in range(100):
        device.run(0.25, watts=400.0)
        joules += (meter.joules(0.25) or 0.0) + (meter.joules(0.25) or 0.0)
    assert joules == pytest.approx(100 * 0.25 * 400, rel=0.03)


def test_a_cpu_says_that_it_is_not_measured() -> None:
    meter = energy_meter("cpu", None)
    assert meter.joules(1.0) is None
    assert meter.reason == "the energy of the device cpu is not measured"


def test_a_gpu_without_its_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter = energy_meter("cuda", "GPU-1")
    assert (meter.joules(1.0), meter.reason) == (None, "the package nvidia-ml-py is not installed")


def test_a_gpu_that_cannot_tell_says_so() -> None:
    """NVML itself, on a machine that has no such GPU."""
    meter = energy_meter("cuda", "GPU-00000000-0000-0000-0000-000000000000")
    assert meter.joules(1.0) is None
    assert meter.reason is not None
    assert meter.reason.startswith("NVML does not tell the energy of GPU-0000")


def test_nvmls_millijoules_become_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([5_000, 5_000, 6_500, 6_500, 6_500])
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(told),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    meter = energy_meter("cuda", "GPU-1")
    meter.joules(0.1)
    assert meter.total_joules == 1.5


def test_a_counter_that_fails_later_ends_the_measuring_and_says_so() -> None:
    device = Device()
    meter = device.meter()
    meter._counter = lambda: 1 / 0
    assert meter.joules(1.0) is None
    assert meter.reason == "the GPU's energy counter failed: division by zero"


def test_engines_on_one_device_share_its_meter() -> None:
    meters = EnergyMeters()
    assert meters.of("cpu", None) is meters.of("cpu", None)
    assert meters.of("cuda:0", "GPU-1") is not meters.of("cuda:1", "GPU-2")
