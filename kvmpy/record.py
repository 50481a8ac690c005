"""Typed records: the part of `dataclasses` that kvmpy uses, without its import.

Importing `dataclasses` loads `inspect`, `ast` and `tokenize`: 20 ms, half of what `kvmpy boot hello.bin` may take over
a bare interpreter. Type checkers see a decorator that makes dataclasses (PEP 681), so a record is checked like one.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar, dataclass_transform

    T = TypeVar("T")

    def field(*, default_factory: Callable[[], T]) -> T:
        """Declare a default made by calling `default_factory`, for values that must not be shared."""

    @dataclass_transform(field_specifiers=(field,))
    def record(cls: type[T]) -> type[T]:
        """Give the annotated class an `__init__`, `__eq__`, `__repr__`, and slots for its fields."""

    def replace(obj: T, /, **changes: Any) -> T:
        """Return a copy of the record with some fields changed."""

    def asdict(obj: object, /) -> dict[str, Any]:
        """Return the record as a dictionary, records and containers inside it converted too."""

else:

    class _Factory:
        """A default that is made anew for every record."""

        __slots__ = ("make",)

        def __init__(self, make):
            self.make = make

    def field(*, default_factory):
        """Declare a default made by calling `default_factory`, for values that must not be shared."""
        return _Factory(default_factory)

    def record(cls):
        """Give the annotated class an `__init__`, `__eq__`, `__repr__`, and slots for its fields."""
        names = tuple(vars(cls).get("__annotations__", ()))
        inherited = tuple(n for n in getattr(cls, "__match_args__", ()) if n not in names)
        defaults = {**getattr(cls, "_record_defaults", {}), **{n: cls.__dict__[n] for n in names if n in cls.__dict__}}
        body = {k: v for k, v in cls.__dict__.items() if k not in (*names, "__dict__", "__weakref__")}
        body.update(__slots__=names, __match_args__=inherited + names, _record_defaults=defaults)
        body.setdefault("__repr__", _repr)
        body.update(__init__=_init_at_first_use, __eq__=_eq, __hash__=None)
        return type(cls)(cls.__name__, cls.__bases__, body)

    def _init_at_first_use(self, *values, **named):
        """Compile the class's `__init__` (70 us) when its first record is made: most kinds never are."""
        cls = type(self)
        cls.__init__ = _make_init(cls.__match_args__, cls._record_defaults)
        cls.__init__(self, *values, **named)

    def _make_init(fields, defaults):
        params = ", ".join(f"{n}=_d[{n!r}]" if n in defaults else n for n in fields)
        lines = [
            f"    self.{n} = {n}.make() if {n} is _d[{n!r}] else {n}"
            if isinstance(defaults.get(n), _Factory)
            else f"    self.{n} = {n}"
            for n in fields
        ]
        scope = {"_d": defaults}
        exec(f"def __init__(self, {params}):\n" + "\n".join(lines or ["    pass"]), scope)
        return scope["__init__"]

    def _values(self):
        return tuple(getattr(self, n) for n in self.__match_args__)

    def _eq(self, other):
        return _values(self) == _values(other) if type(self) is type(other) else NotImplemented

    def _repr(self):
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in self.__match_args__)})"

    def replace(obj, /, **changes):
        """Return a copy of the record with some fields changed."""
        return type(obj)(**{n: getattr(obj, n) for n in obj.__match_args__} | changes)

    def asdict(obj, /):
        """Return the record as a dictionary, records and containers inside it converted too."""
        return {n: _plain(getattr(obj, n)) for n in obj.__match_args__}

    def _plain(value):
        if hasattr(value, "_record_defaults"):
            return asdict(value)
        if isinstance(value, (list, tuple)):
            return type(value)(_plain(v) for v in value)
        if isinstance(value, dict):
            return {k: _plain(v) for k, v in value.items()}
        return value


__all__ = ["asdict", "field", "record", "replace"]
