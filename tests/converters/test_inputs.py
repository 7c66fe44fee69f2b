"""Which tensors a model takes, and the rows as served."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from penstock.converters import BadSample
from penstock.converters.inputs import as_frame, inputs_of


def test_numbers_become_one_named_matrix(logistic):
    inputs = inputs_of(logistic.model, logistic.rows)
    assert inputs.kind == "matrix"
    assert inputs.columns == tuple(logistic.rows.columns)
    fed = inputs.feed(logistic.rows)["input"]
    assert fed.dtype == np.float32
    assert fed.flags.c_contiguous
    assert np.array_equal(fed, logistic.rows.to_numpy(np.float32))


def test_columns_come_in_the_models_order_whatever_the_samples(logistic):
    turned = logistic.rows[logistic.rows.columns[::-1]]
    assert inputs_of(logistic.model, turned).columns == tuple(logistic.rows.columns)


def test_columns_chosen_by_name_stay_single_and_keep_their_types(mixed):
    inputs = inputs_of(mixed.model, mixed.rows)
    assert inputs.kind == "columns"
    assert dict(zip(inputs.columns, inputs.datatypes, strict=True)) == {
        "card type": "BYTES",
        "amount.eur": "FP32",
        "age": "INT64",
        "is new": "INT64",
        "unused column": "FP32",
        "card.type": "BYTES",
    }
    assert all(array.shape == (len(mixed.rows), 1) for array in inputs.feed(mixed.rows).values())


def test_served_rows_are_rounded_to_float32_in_the_samples_own_type(logistic):
    served = inputs_of(logistic.model, logistic.rows).served(logistic.rows)
    assert (served.dtypes == np.float64).all()
    assert np.array_equal(served.to_numpy(), logistic.rows.to_numpy(np.float32).astype(np.float64))


def test_a_float32_sample_is_asked_in_float32(logistic):
    single = logistic.rows.astype(np.float32)
    assert (inputs_of(logistic.model, single).served(single).dtypes == np.float32).all()


def test_arrays_name_their_columns_x0_x1():
    assert list(as_frame(np.zeros((2, 3))).columns) == ["x0", "x1", "x2"]


def test_whole_numbers_that_float32_cannot_hold_are_told(logistic):
    rows = logistic.rows.copy()
    rows["mean area"] = 16_777_217
    notes = inputs_of(logistic.model, rows).notes(rows)
    assert len(notes) == 1
    assert notes[0].endswith("mean area")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda rows: rows.drop(columns="age"), "lacks these columns of the model: age"),
        (lambda rows: rows.assign(**{"card type": None}), "text column 'card type' has missing values"),
        (lambda rows: rows.iloc[:0], "no rows"),
        (lambda rows: rows.assign(age=pd.Timestamp(0)), "expected numbers or text"),
        (lambda rows: pd.concat([rows, rows], axis=1), "same name"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused_by_name(mixed, spoil, said):
    with pytest.raises(BadSample, match=said):
        inputs_of(mixed.model, spoil(mixed.rows))


def test_a_column_too_many_hints_at_the_label(cancer):
    from sklearn.linear_model import Ridge

    rows, labels = cancer
    model = Ridge().fit(rows.to_numpy(), labels)
    with pytest.raises(BadSample, match="--label"):
        inputs_of(model, rows.assign(target=labels))
