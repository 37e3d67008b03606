"""The C and Python readers of the numbers in a model file accept the same texts and return the same values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from predictor import _numbers
from predictor._numbers import NumberLines, read_floats, read_ints, to_floats
from predictor.errors import ModelTextError

kernel = pytest.importorskip("predictor._kernel", reason="the extension is not built here")

HARD = [
    *("0", "-0", "0.0", "1e-35", "1.0000000180025095e-35", "-1.0000000180025095e-35", "5e-324", "1e308"),
    *(
        "9007199254740993",
        "9007199254740993.0",
        "18446744073709551615",
        "18446744073709551616e3",
        "1e22",
        "1e23",
    ),
    *("0.30000000000000004", "123456789012345678e-27", "123456789012345678e-28", "1.7976931348623157e308"),
    *("2.2250738585072011e-308", "inf", "-inf", "1e400", "0e99999999999", "00", "01", "-01", "1e05", "1e+5"),
]
texts = st.one_of(
    st.text(alphabet="0123456789+-.e inf", max_size=24),
    st.lists(st.sampled_from(HARD), min_size=1, max_size=4).map(" ".join),
    st.lists(st.floats(allow_nan=False).map(repr), min_size=1, max_size=4).map(" ".join),
    st.lists(st.integers().map(str), min_size=1, max_size=4).map(" ".join),
)


@given(texts)
def test_both_readers_accept_the_same_texts(text: str) -> None:
    assert kernel.are_floats(text.encode()) == (text != "" and _numbers._are_floats(text.encode()))
    room = np.empty(len(text) + 1, np.int64)
    found = kernel.to_ints(text.encode(), room)
    assert (found >= 0) == (text != "" and _numbers._are_ints(text.encode()))


def values(*texts: str) -> np.ndarray:
    text = " ".join(texts).encode()
    assert kernel.are_floats(text)
    return to_floats(text)


@given(st.lists(st.floats(allow_nan=False), min_size=1))
@example([1.0000000180025095e-35, 1.0000000180025095e-35, 2.0])
def test_float64_values_round_trip_bit_for_bit(numbers: list[float]) -> None:
    found = values(*(repr(number).replace("+", "") for number in numbers))
    assert np.array_equal(found.view(np.int64), np.array(numbers).view(np.int64))


@given(st.integers(0, 10**20), st.integers(-45, 45), st.integers(0, 30), st.sampled_from(["", "-"]))
def test_decimals_with_an_exponent_equal_python_floats(
    digits: int, exponent: int, point: int, sign: str
) -> None:
    whole = str(digits)
    if 0 < point < len(whole):
        whole = f"{whole[:point]}.{whole[point:]}"
    text = f"{sign}{whole}e{exponent}"
    assert values(text, text, "1").tolist() == [float(text), float(text), 1.0]


@pytest.mark.parametrize("zeros", [0, 9_990, 10_000, 100_000])
@pytest.mark.parametrize("exponent", [9_999, 10_000, 10_001, 99_999, 100_000, 100_010])
def test_a_long_exponent_is_read_to_its_end(zeros: int, exponent: int) -> None:
    for text in (f"0.{'0' * zeros}1e{exponent}", f"1{'0' * zeros}e-{exponent}"):
        assert values(text).tolist() == [float(text)]


@given(st.integers(2**53, 2**62), st.integers(0, 9))
def test_halfway_cases_equal_python_floats(base: int, zeros: int) -> None:
    step = 2 ** (base.bit_length() - 53)
    halfway = f"{base // step * step + step // 2}.{'0' * zeros}"
    for text in (halfway + "0", halfway + "1"):
        assert values(text).tolist() == [float(text)]


@pytest.mark.parametrize("engine", ["lightgbm", ""])
def test_both_readers_refuse_bad_lines_with_the_tree(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREDICTOR_ENGINE", engine)
    assert read_ints(NumberLines("n", [b"1 -2", b"", b"3"], [2, 0, 1]), low=-2, high=3).tolist() == [1, -2, 3]
    for lines, tree in (
        (NumberLines("n", [b"1 2", b"3"], [1, 2]), 0),
        (NumberLines("n", [b"1", b"3  4"], [1, 3]), 1),
        (NumberLines("n", [b"1", b"1.5"], [1, 1]), 1),
        (NumberLines("n", [b"1", b"99999999999999999999"], [1, 1]), 1),
    ):
        with pytest.raises(ModelTextError) as caught:
            read_ints(lines, low=0, high=9)
        assert caught.value.tree == tree
    with pytest.raises(ModelTextError) as caught:
        read_floats(NumberLines("n", [b"1", b"1 nan"], [1, 2]))
    assert caught.value.tree == 1
