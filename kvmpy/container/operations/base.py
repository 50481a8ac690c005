"""What every operation of a plan is: typed fields, a line that says what it does, and the system calls that do it."""

from __future__ import annotations

from posix import strerror

from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar, dataclass_transform

    from kvmpy.container.launch import Launch
    from kvmpy.container.tape import Tape
else:

    def dataclass_transform():
        """Stand in for what only type checkers read."""
        return lambda cls: cls


@dataclass_transform()
class Operation:
    """One step on the way from a configuration to a running program.

    A subclass names its fields as a dataclass does; `dataclasses` itself would take 9 ms to import.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        own = (name for name in cls.__annotations__ if name not in cls.FIELDS)
        cls.FIELDS = (*cls.FIELDS, *own)

    def __init__(self, *values: object, **named: object) -> None:
        fields = self.FIELDS
        self.__dict__.update(zip(fields, values, strict=False))
        self.__dict__.update(named)

    def describe(self) -> str:
        """Say in a few words what the operation does."""
        raise NotImplementedError

    def write(self, tape: Tape) -> None:
        """Append the operation's system calls."""
        raise NotImplementedError

    def answer(self, launch: Launch) -> None:
        """Do what the runtime itself has to do when the tape asks (`Tape.ask`)."""

    def error(self, number: int) -> ContainerError:
        """Return the error of a call of this operation that failed with this errno."""
        return ContainerError(f"{self.describe()}: {strerror(number).lower()}")
