"""runc's command line, as podman, containerd and CRI-O call it. Only the module of the verb is imported."""

from __future__ import annotations

import posix

from kvmpy.container.host import to_json, write_file
from kvmpy.container.state import Store, timestamp
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from kvmpy.container.state import State

NAME = "kvmpy-oci"
VERBS = {
    "create": "create", "start": "start", "run": "run", "state": "state", "kill": "kill", "delete": "delete",
    "exec": "exec", "ps": "ps", "list": "list", "pause": "pause", "resume": "resume", "update": "update",
    "events": "events", "spec": "spec", "features": "features", "checkpoint": "checkpoint", "restore": "checkpoint",
}  # fmt: skip
GLOBAL = {
    "--root": "DIR",
    "--log": "FILE",
    "--log-format": "FORMAT",
    "--debug": "",
    "--systemd-cgroup": "",
    "--rootless": "WHEN",
    "--criu": "PATH",
    "--cgroup-manager": "NAME",
    "--version": "",
    "--help": "",
}
SHORT_GLOBAL = {"-v": "--version", "-h": "--help"}
FAILED = 1
EXEC_FAILED = 255
INTERRUPTED = 130
APPEND = posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND


class UsageError(ContainerError):
    """A command line that cannot be understood."""


class Call:
    """One call of the runtime: its words and options, and where its containers are."""

    def __init__(self, options: dict[str, list[str]], words: list[str]) -> None:
        self.options = options
        self.words = words

    @property
    def store(self) -> Store:
        """Where the containers are."""
        return Store(self.value("--root"))

    def has(self, name: str) -> bool:
        """Whether an option was given."""
        return name in self.options

    def value(self, name: str) -> str:
        """Return the value of an option, the last one given, or an empty text."""
        return self.options.get(name, [""])[-1]

    def values(self, name: str) -> list[str]:
        """Return all values of an option that can be given again and again."""
        return self.options.get(name, [])

    def number(self, name: str) -> int:
        """Return the value of an option as a number, 0 without it."""
        text = self.value(name) or "0"
        if not text.isdigit():
            raise UsageError(f"{name}: {text!r} is no number")
        return int(text)

    def find(self) -> State:
        """Return the container that the first word names."""
        return self.store.find(self.words[0])

    def print(self, text: str) -> None:
        """Write a line to standard output."""
        write_all(1, f"{text}\n")

    def warn(self, text: str) -> None:
        """Tell what failed without making the verb fail."""
        self.tell("warning", text)

    def tell(self, level: str, text: str) -> None:
        """Write a message where the caller wants it: to its log, and errors to standard error too."""
        log = self.value("--log")
        if log and log != "/dev/stderr":
            if self.value("--log-format") == "json":
                line = to_json({"level": level, "msg": text, "time": timestamp()})
            else:
                line = f'time="{timestamp()}" level={level} msg={to_json(text)}'
            try:
                write_file(log, line + "\n", APPEND, 0o644)
            except OSError:
                pass  # the caller's log is gone; standard error is left
        try:
            write_all(2, f"{NAME}: {text}\n")
        except OSError:
            pass  # there is nobody to tell; the exit code stays what it is


def write_all(fd: int, text: str) -> None:
    """Write to a standard descriptor; OSError when it is closed or full."""
    data = text.encode("utf-8", "surrogateescape")
    while data:
        data = data[posix.write(fd, data) :]


def run(arguments: list[str]) -> int:
    """Carry out a command line and return the exit code."""
    call = Call({}, [])
    verb = ""
    try:
        options, rest = parse(arguments, GLOBAL, SHORT_GLOBAL, stop_at_word=True)
        call = Call(options, [])
        if call.has("--version"):
            call.print(version_text())
            return 0
        if call.has("--help") or not rest or rest[0] == "help":
            call.print(help_text())
            return 0
        if call.has("--systemd-cgroup") or call.value("--cgroup-manager") == "systemd":
            raise UsageError("systemd does not make control groups for kvmpy-oci; use --cgroup-manager cgroupfs")
        verb = rest[0]
        module = verb_module(verb)
        options, words = parse(rest[1:], module.OPTIONS, getattr(module, "SHORT", {}), getattr(module, "TAIL", False))
        call.options |= options
        call.words = words
        check_words(verb, module, words)
        return int(module.main(call))
    except ContainerError as error:
        call.tell("error", str(error))
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        call.tell("error", what + posix.strerror(error.errno or 0).lower())
    except KeyboardInterrupt:
        return INTERRUPTED
    return EXEC_FAILED if verb == "exec" else FAILED


def verb_module(verb: str) -> ModuleType:
    """Import the file of a verb."""
    if verb not in VERBS:
        raise UsageError(f"no verb {verb!r}; there are {', '.join(VERBS)}")
    name = f"kvmpy.container.verbs.{VERBS[verb]}"
    module: ModuleType = __import__(name, fromlist=["main"])
    return module


def parse(
    arguments: list[str], known: dict[str, str], short: dict[str, str], stop_at_word: bool
) -> tuple[dict[str, list[str]], list[str]]:
    """Sort options from words. An option's entry in `known` names its value, or is empty for one without.

    Go's flags, which callers are used to, may be written with one dash or two, and end at the first word.
    """
    options: dict[str, list[str]] = {}
    words: list[str] = []
    at = 0
    while at < len(arguments):
        argument = arguments[at]
        at += 1
        if argument == "--":
            return options, words + arguments[at:]
        if argument[:1] != "-" or argument == "-" or (words and argument[1:].isdigit()):
            words.append(argument)
            if stop_at_word:
                return options, words + arguments[at:]
            continue
        name, equals, value = argument.partition("=")
        name = short.get(name, name if name.startswith("--") else f"-{name}")
        if name not in known:
            raise UsageError(f"no option {argument!r}; see {NAME} --help")
        if known[name] and not equals:
            if at == len(arguments):
                raise UsageError(f"{name} needs a value: {known[name]}")
            value = arguments[at]
            at += 1
        options.setdefault(name, []).append(value)
        if not known[name] and value in ("false", "0"):
            del options[name]
    return options, words


def check_words(verb: str, module: ModuleType, words: list[str]) -> None:
    """Raise a UsageError unless the words are as many as the verb takes."""
    needed = [word for word in module.WORDS if word[0] != "["]
    endless = module.WORDS[-1:] and module.WORDS[-1].endswith("...]")
    if len(words) < len(needed) or (len(words) > len(module.WORDS) and not endless):
        raise UsageError(f"usage: {NAME} {verb} [OPTION]... {' '.join(module.WORDS)}")


def version_text() -> str:
    """Return what callers read: a name and version, a commit, the specification."""
    from kvmpy import __version__
    from kvmpy.container.config import SPEC_VERSION

    return f"{NAME} version {__version__}\ncommit: v{__version__}\nspec: {SPEC_VERSION}"


def help_text() -> str:
    """Return the verbs and options."""
    lines = [f"usage: {NAME} [GLOBAL OPTION]... VERB [OPTION]... [WORD]...", "", "verbs:"]
    for verb in VERBS:
        module = verb_module(verb)
        takes = " ".join([*getattr(module, "OPTIONS", {}), *module.WORDS])
        lines.append(f"  {verb:11}{module.SUMMARY}\n             {takes}")
    lines += ["", "global options:", "  " + " ".join(f"{name} {value}".strip() for name, value in GLOBAL.items())]
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Run, and end the process at once: an interpreter that cleans up takes 0.8 ms."""
    posix._exit(run(arguments))
