"""Expressions have the values that Python's have."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from kvmpy.asm.expressions import Reader
from kvmpy.asm.tokens import Misplaced, tokens_of

NAMES = {"alpha": 5, "beta": -70, "gamma": 1 << 40}
atoms = st.one_of(
    st.integers(0, 1 << 40).map(str),
    st.integers(0, 1 << 40).map(hex),
    st.sampled_from([*NAMES, "."]),
)
trees = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+ - * | & ^ /".split()), inner).map(" ".join),
        st.tuples(inner, st.sampled_from([" << ", " >> "]), st.integers(0, 5).map(str)).map("".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-({text})"),
        inner.map(lambda text: f"~{text}"),
    ),
    max_leaves=12,
)


@given(trees)
@example("0 >> 0 - 1")
@example("1 >> 65")
def test_values_are_those_of_python(text: str) -> None:
    reader = Reader(tokens_of(text))
    try:
        value = reader.expression().evaluate(NAMES, 0x7C00)
    except Misplaced as error:
        assert "by zero" in str(error) or "128 bits" in str(error) or "a shift by" in str(error)  # noqa: PT017
        return
    reader.end()
    assert value == eval(text.replace(" / ", " // ").replace(".", "0x7c00"), {}, NAMES)


@given(trees)
def test_what_has_no_unknown_is_known_at_once(text: str) -> None:
    expression = Reader(tokens_of(text)).expression()
    assert expression.is_constant(NAMES) == ("." not in text)
    names = {name.name for name in expression.names()}
    assert names == {name for name in NAMES if name in text}
    assert expression.is_constant({}) == (not names and "." not in text)
