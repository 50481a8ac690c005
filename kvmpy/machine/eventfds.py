"""Short ways between guest and devices that stop no vCPU: a write that signals, a signal that interrupts."""

from __future__ import annotations

from functools import partial

from kvmpy.machine.events import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.accel.base import Vm
    from kvmpy.machine.chips import Chips
    from kvmpy.machine.events import Events


class Eventfds:
    """Makes the eventfds of a machine and keeps them until it is closed."""

    def __init__(self, vm: Vm, chips: Chips, events: Events) -> None:
        self._vm = vm
        self._chips = chips
        self._events = events
        self._flags: list[Flag] = []

    def on_write(
        self, address: int, size: int, callback: Callable[[], None], *, port: bool = False, match: int | None = None
    ) -> bool:
        """Call `callback` when the guest writes `size` bytes (`match`, if given) to the address, without an exit.

        Several writes may end in one call. False when the accelerator cannot: then the write exits and reaches the
        device on the bus, as without this.
        """
        flag = Flag()
        if not self._vm.notify(flag.fd, address, size, True, port=port, match=match):
            flag.close()
            return False
        self._flags.append(flag)

        def rung() -> None:
            flag.down()
            callback()

        self._events.add_fd(flag.fd, rung)
        return True

    def interrupt(self, gsi: int) -> int:
        """Return an eventfd that pulses the interrupt line when it is signalled, by any thread or process."""
        flag = Flag()
        self._flags.append(flag)
        if not self._chips.connect(flag.fd, gsi, True):
            self._events.add_fd(flag.fd, partial(self._pulse, flag, gsi))
        return flag.fd

    def _pulse(self, flag: Flag, gsi: int) -> None:
        flag.down()
        self._chips.set_line(gsi, 1)
        self._chips.set_line(gsi, 0)

    def close(self) -> None:
        """Close them all."""
        while self._flags:
            self._flags.pop().close()
