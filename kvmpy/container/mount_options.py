"""The options of a mount, as runtime-spec lists them (config, Linux mount options), sorted by what takes them."""

from __future__ import annotations

from kvmpy.container import kernel as k

# Attributes of a mount (mount_setattr(2)): what to set, what to clear.
ATTRIBUTES: dict[str, tuple[int, int]] = {
    "ro": (k.RDONLY, 0),
    "rw": (0, k.RDONLY),
    "nosuid": (k.NOSUID, 0),
    "suid": (0, k.NOSUID),
    "nodev": (k.NODEV, 0),
    "dev": (0, k.NODEV),
    "noexec": (k.NOEXEC, 0),
    "exec": (0, k.NOEXEC),
    "nodiratime": (k.NODIRATIME, 0),
    "diratime": (0, k.NODIRATIME),
    "nosymfollow": (k.NOSYMFOLLOW, 0),
    "symfollow": (0, k.NOSYMFOLLOW),
    "noatime": (k.NOATIME, k.ATIME),
    "strictatime": (k.STRICTATIME, k.ATIME),
    "relatime": (0, k.ATIME),
    "atime": (0, k.ATIME),
    "norelatime": (k.STRICTATIME, k.ATIME),
    "nostrictatime": (0, k.ATIME),
}
PROPAGATION: dict[str, tuple[int, bool]] = {
    prefix + name: (flag, bool(prefix))
    for name, flag in (
        ("private", k.MS_PRIVATE),
        ("slave", k.MS_SLAVE),
        ("shared", k.MS_SHARED),
        ("unbindable", k.MS_UNBINDABLE),
    )
    for prefix in ("", "r")
}
# Flags of the filesystem itself, which fsconfig(2) knows by the same names.
OF_FILESYSTEM = {"sync", "dirsync", "mand", "lazytime", "iversion", "acl"}
DEFAULTS = {"defaults", "async", "nomand", "nolazytime", "noiversion", "noacl", "loud", "silent"}


class MountOptions:
    """What a mount's options ask for.

    `attributes` and `recursive` are (set, clear) of the mount itself and of all mounts below it; `propagation` is the
    list of (type, recursive) to apply; `data` goes to the filesystem: (name, value), the value None for a flag.
    """

    def __init__(self, options: list[str]) -> None:
        self.attributes = (0, 0)
        self.recursive = (0, 0)
        self.propagation: list[tuple[int, bool]] = []
        self.data: list[tuple[str, str | None]] = []
        self.bind = False
        self.bind_all = False
        self.remount = False
        self.copy_up = False
        self.idmap = False
        self.idmap_all = False
        for option in options:
            self._take(option)

    def leave_writable(self) -> None:
        """Take back that it is read-only."""
        self.attributes = _merge(self.attributes, ATTRIBUTES["rw"])

    def _take(self, option: str) -> None:
        if option in ATTRIBUTES:
            self.attributes = _merge(self.attributes, ATTRIBUTES[option])
        elif option in PROPAGATION:
            self.propagation.append(PROPAGATION[option])
        elif option in ("bind", "rbind"):
            self.bind = True
            self.bind_all |= option == "rbind"
        elif option == "remount":
            self.remount = True
        elif option == "tmpcopyup":
            self.copy_up = True
        elif option in ("idmap", "ridmap"):
            self.idmap = True
            self.idmap_all |= option == "ridmap"
        elif option[:1] == "r" and option[1:] in ATTRIBUTES:
            self.recursive = _merge(self.recursive, ATTRIBUTES[option[1:]])
        elif option in OF_FILESYSTEM:
            self.data.append((option, None))
        elif option and option not in DEFAULTS:
            name, equals, value = option.partition("=")
            self.data.append((name, value if equals else None))


def _merge(before: tuple[int, int], new: tuple[int, int]) -> tuple[int, int]:
    """The last option wins: what one sets, a later one can clear, and the other way round."""
    set, clear = new
    return (before[0] & ~clear) | set, (before[1] & ~set) | clear


SHOWN = {int(set): name for name, (set, clear) in ATTRIBUTES.items() if set and not clear} | {
    int(k.NOATIME): "noatime",
    int(k.STRICTATIME): "strictatime",
}


def shown(attributes: int) -> str:
    """Return the names of attributes that are set, after a comma each."""
    return "".join(f", {name}" for flag, name in SHOWN.items() if attributes & flag)
