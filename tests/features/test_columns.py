import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from penstock.features import Column, InvalidData
from penstock.features.columns import fit, to_text

NUMBERS = st.sampled_from(["float32", "float64", "int64", "int32", "int8", "uint64", "uint8", "bool"])
STORED = st.sampled_from(["float32", "float64", "int64", "int32", "bool"])


@given(NUMBERS.flatmap(lambda dtype: arrays.arrays(dtype, st.integers(0, 5))), STORED)
def test_what_fits_is_kept_and_what_does_not_is_refused(array, dtype):
    """Against Python's own unlimited integers."""
    ranges = {"int64": (-(2**63), 2**63 - 1), "int32": (-(2**31), 2**31 - 1), "bool": (0, 1)}

    def fits(value):
        if value != value or "float64" in dtype:
            return True
        if dtype == "float32":
            return value in (np.inf, -np.inf) or abs(float(value)) < float(np.finfo(np.float32).max)
        low, high = ranges[dtype]
        exact = 2 ** (1 + np.finfo(array.dtype).nmant) if array.dtype.kind == "f" and dtype != "bool" else np.inf
        return abs(value) < exact and value == int(value) and low <= int(value) <= high

    try:
        values, nulls = fit(Column(name="c", dtype=dtype), array, len(array))
    except InvalidData:
        assert not all(fits(value) for value in array.tolist())
        return
    for i, value in enumerate(array.tolist()):
        if value != value:
            assert nulls[i] == 1
        elif dtype in ranges:
            assert int(values[i]) == int(value)
        else:
            assert values[i] == np.array(array[i]).astype(dtype)


@pytest.mark.parametrize(
    ("array", "dtype", "shown"),
    [
        (np.array([1.0, 0.5]), "int64", "0.5"),
        (np.array([0, 3_000_000_000]), "int32", "3000000000"),
        (np.array([0.0, 2.0**63]), "int64", "9.22"),
        (np.array([0, 2**64 - 1], np.uint64), "int64", "18446744073709551615"),
        (np.array([0, 1e300]), "float32", "1e+300"),
        (np.array([1, 2]), "bool", "2"),
        (np.array([1, -np.inf]), "int32", "-inf"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_row(array, dtype, shown):
    with pytest.raises(InvalidData, match="'c', row 1") as caught:
        fit(Column(name="c", dtype=dtype), array, 2)
    assert shown in str(caught.value)


def test_text_is_no_number():
    with pytest.raises(InvalidData, match="'c' is <U1"):
        fit(Column(name="c", dtype="float32"), np.array(["a"]), 1)


@given(arrays.arrays(np.float32, 3, elements=st.floats(width=32, allow_nan=False)))
def test_decimal_text_of_float32_reads_back_exactly(values):
    assert np.array([np.float32(text) for text in to_text(values)]).tobytes() == values.tobytes()


@given(arrays.arrays(np.float64, 3, elements=st.floats(allow_nan=False)))
def test_decimal_text_of_float64_reads_back_exactly(values):
    assert np.array([float(text) for text in to_text(values)]).tobytes() == values.tobytes()
