"""A tape: system calls as data. Python writes it, the stage (native/stage.c) plays it between clone and execve."""

from __future__ import annotations

from _struct import Struct as Layout
from _struct import pack, pack_into, unpack_from

from kvmpy.container.kernel import SYSTEM_CALLS, Named, Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kvmpy.container.operations.base import Operation

    Argument = int | str | bytes | Struct

ADDRESS = 0x10000000  # TAPE_ADDRESS of native/tape.h
HEADER = 64
CALL = Layout("<hhBBBxii6Q")  # struct call of native/tape.h
PADDING = tuple((0,) * (6 - used) for used in range(7))
WORD = (1 << 64) - 1
PROGRAM_HEADER = Layout("<IIQQQQQQ")  # Elf64_Phdr of <elf.h>
DATA_FIELDS = 80  # how many characters of data are shown

READY, FORKED, ASK = -1, -2, -3  # what the stage tells besides a failure; native/tape.h


class Label:
    """A place on a tape to go on at."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at = 0


class Call:
    """One system call of a tape, with the operation that it belongs to. The fields are as in `Tape.call()`."""

    __slots__ = ("accept", "args", "keep", "name", "nonzero", "operation", "otherwise", "then")

    def __init__(
        self,
        operation: Operation | None,
        name: str,
        args: tuple[Argument, ...],
        keep: int,
        accept: tuple[int, ...],
        otherwise: Label | None,
        then: Label | None,
        nonzero: bool,
    ) -> None:
        self.operation = operation
        self.name = name
        self.args = args
        self.keep = keep
        self.accept = accept
        self.otherwise = otherwise
        self.then = then
        self.nonzero = nonzero

    def __str__(self) -> str:
        text = f"{self.name}({', '.join(map(_shown, self.args))})"
        if self.keep:
            text += f" = {self.keep}"
        if self.accept:
            from errno import errorcode

            where = f" -> {self.otherwise.at}" if self.otherwise else ""
            text += f"  [{', '.join(errorcode[n] for n in self.accept)}: no error{where}]"
        if self.then:
            text += f"  [-> {self.then.at}]"
        return text


def _content(value: str | bytes | bytearray | Struct) -> bytes | bytearray:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape") + b"\0"
    return value.data if isinstance(value, Struct) else value


def _shown(value: Argument) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    if isinstance(value, bytes):
        if value.strip(b"\0"):
            return repr(value[:DATA_FIELDS])[1:] + ("..." if len(value) > DATA_FIELDS else "")
        return f"[{len(value)} bytes]"
    return str(value) if isinstance(value, (Named, Struct)) or -4096 < value < 4096 else hex(value)


class Descriptors:
    """The numbers of the descriptors that a tape works with, above those that the container's program inherits.

    `preserved` counts the descriptors after 2 that the program keeps (runc's --preserve-fds).
    """

    NAMES = (
        "report",  # to the runtime: failures, questions, answers
        "fifo",  # where `start` says go
        "console",  # the socket that wants the terminal
        "root",  # the container's root directory
        "procfs",  # a proc of the stage's own, which the image cannot fake (CVE-2025-52881)
        "directory",  # the directory at hand in the container
        "file",  # something in it
        "tree",  # a mount that has no place yet
        "null",  # the container's /dev/null, when it is known to be that
        "terminal",
        "container",  # a pidfd of the container's first process
    )

    report: Named
    fifo: Named
    console: Named
    root: Named
    procfs: Named
    directory: Named
    file: Named
    tree: Named
    null: Named
    terminal: Named
    container: Named

    def __init__(self, preserved: int = 0) -> None:
        self.first = 3 + preserved
        for number, name in enumerate(self.NAMES, self.first):
            setattr(self, name, Named(number, name.upper()))
        self.last = self.first + len(self.NAMES) - 1

    def another(self, name: str) -> Named:
        """Return a number that nothing else on this tape has."""
        self.last += 1
        return Named(self.last, name.upper())


class Memory(dict[object, int]):
    """What the calls of a tape point to, and for each of their arguments the word that stands for it.

    That is a number itself, as 64 bits, and the address of anything else.
    """

    def __init__(self) -> None:
        self.data = bytearray()

    def __missing__(self, argument: Argument) -> int:
        if isinstance(argument, int):
            word = self[argument] = argument & WORD
            return word
        return self.put(argument)

    def put(self, value: str | bytes | bytearray | Struct) -> int:
        """Write bytes, or a text and its zero; return their address.

        The same text, or the same Struct, is written once: nothing changes them. Bytes may be a buffer, and are new.
        """
        once = isinstance(value, (str, Struct))
        if once and value in self:
            return self[value]
        content = _content(value)
        data = self.data
        data += bytes(-len(data) % 8)
        at = ADDRESS + HEADER + len(data)
        data += content
        if once:
            self[value] = at
        return at


class Tape:
    """System calls in order, with all the memory that they point to."""

    def __init__(self, fds: Descriptors) -> None:
        self.fds = fds
        self.calls: list[Call] = []
        self._memory = Memory()
        self.fork_at = -1  # the index of FORK, if there is one
        self.questions: set[int] = set()  # the indices of calls that ask the runtime
        self._operation: Operation | None = None

    def write(self, operations: Iterable[Operation]) -> None:
        """Append the calls of these operations."""
        for operation in operations:
            self._operation = operation
            operation.write(self)

    def call(
        self,
        name: str,
        *args: Argument,
        keep: int = 0,
        accept: tuple[int, ...] = (),
        otherwise: Label | None = None,
        then: Label | None = None,
        nonzero: bool = False,
    ) -> None:
        """Append one system call; text and bytes are passed by address, what is left out is 0.

        `keep` is the number that the descriptor it returns gets. After an error of `accept` (two at most) the tape goes
        on at `otherwise`, after success at `then`; without a label, at the next call. `nonzero`: 0 is a failure.
        """
        if name == "FORK":
            self.fork_at = len(self.calls)
        self.calls.append(Call(self._operation, name, args, keep, accept, otherwise, then, nonzero))

    def place(self, label: Label) -> None:
        """Let a label mean the next call."""
        label.at = len(self.calls)

    def put(self, value: str | bytes | bytearray | Struct) -> int:
        """Write into the tape's memory; return the address (Memory.put)."""
        return self._memory.put(value)

    def put_strings(self, texts: Sequence[str]) -> int:
        """Write a null-terminated array of texts, as execve takes it; return its address."""
        return self.put(pack(f"<{len(texts) + 1}Q", *[self.put(text) for text in texts], 0))

    def ask(self, with_descriptor: int = 0) -> None:
        """Let the runtime do its part of the operation at hand, perhaps with a descriptor, and wait until it has."""
        self.questions.add(len(self.calls))
        question = Struct("<ii", what=ASK, index=len(self.calls))
        if with_descriptor:
            self.send(self.fds.report, question.data, with_descriptor)
        else:
            self.call("write", self.fds.report, question, 8)
        self.call("read", self.fds.report, bytes(8), 8, nonzero=True)

    def send(self, socket: int, data: bytes, descriptor: int) -> None:
        """Append the sending of data and a descriptor over a Unix socket (sendmsg(2), cmsg(3), SCM_RIGHTS)."""
        vector = Struct("<QQ", iov_base=self.put(data), iov_len=len(data))
        rights = Struct("<QiiI4x", cmsg_len=20, cmsg_level=1, cmsg_type=1, fd=descriptor)
        message = Struct(
            "<QQQQQQQ",
            msg_name=0,
            msg_namelen=0,
            msg_iov=self.put(vector),
            msg_iovlen=1,
            msg_control=self.put(rights),
            msg_controllen=24,
            msg_flags=0,
        )
        self.call("sendmsg", socket, message, 0)

    def image(self) -> bytes:
        """Return the memory of the tape, to be mapped at ADDRESS."""
        word, packed = self._memory.__getitem__, []
        for call in self.calls:
            errno1, errno2 = (*call.accept, 0)[:2] if call.accept else (0, 0)
            otherwise = call.otherwise.at if call.otherwise else 0
            then = call.then.at if call.then else 0
            jumps = (errno1, errno2, call.nonzero, otherwise, then)
            words = map(word, call.args)
            packed.append(CALL.pack(SYSTEM_CALLS[call.name], call.keep, *jumps, *words, *PADDING[len(call.args)]))
        data = self._memory.data
        data += bytes(-len(data) % 8)
        header = pack("<QQQ", len(self.calls), ADDRESS + HEADER + len(data), self.fds.report)
        return header.ljust(HEADER, b"\0") + data + b"".join(packed)

    def lines(self) -> Iterator[tuple[Operation | None, list[str]]]:
        """Give each operation with its calls as text, numbered as jumps name them."""
        at = 0
        while at < len(self.calls):
            operation, first = self.calls[at].operation, at
            while at < len(self.calls) and self.calls[at].operation is operation:
                at += 1
            yield operation, [f"{number:4} {self.calls[number]}" for number in range(first, at)]


def join(stage: bytes, image: bytes) -> bytes:
    """Return one executable of the stage and a tape: the tape becomes the stage's segment at ADDRESS (elf(5))."""
    first, count = unpack_from("<Q", stage, 32)[0], unpack_from("<H", stage, 56)[0]
    for at in range(first, first + count * PROGRAM_HEADER.size, PROGRAM_HEADER.size):
        kind, flags, offset, address, physical, _, _, align = PROGRAM_HEADER.unpack_from(stage, at)
        if address == ADDRESS:
            whole = bytearray(stage[:offset]) + image
            header = (kind, flags, offset, address, physical, len(image), len(image), align)
            pack_into(PROGRAM_HEADER.format, whole, at, *header)
            return bytes(whole)
    raise AssertionError("the stage has no segment for a tape")
