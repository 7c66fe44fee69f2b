"""Reading what the publisher brings: a fitted scikit-learn model and a table of sample rows.

Unpickling runs whatever code the file's author put there, so joblib and pickle files are opened only when the caller
vouches for them (`trust`). Files of skops are data: every type in them is checked against a list of known ones before
anything is built, and unknown types are refused unless named in `allow_types`.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from penstock.converters.errors import BadSample, ConvertError, UnsupportedModel, UntrustedModel

PICKLES = (".joblib", ".pkl", ".pickle")
TABLES = (".parquet", ".pq", ".csv")


def load_model(path: Path | str, *, trust: bool = False, allow_types: Sequence[str] = ()) -> Any:
    """The fitted estimator in a `.skops`, `.joblib` or `.pkl` file.

    Args:
        path: the file.
        trust: the caller knows who made a pickle and lets its code run; no effect on skops files.
        allow_types: full names of types, besides the known ones, that a skops file may hold.

    Raises:
        UntrustedModel: a pickle without `trust`, or a skops file with types nobody allowed.
        ConvertError: the file is missing, damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise ConvertError(f"there is no model file {path}")
    if path.suffix == ".skops":
        return _load_skops(path, allow_types)
    if path.suffix in PICKLES:
        return _load_pickle(path, trust)
    if path.suffix == ".onnx":
        raise UnsupportedModel(f"{path} is ONNX already: publish it with 'penstock models publish {path} --name NAME'")
    raise UnsupportedModel(f"{path} is none of the known kinds: expected .skops, .joblib or .pkl")


def _load_skops(path: Path, allow_types: Sequence[str]) -> Any:
    from skops.io import get_untrusted_types, load

    try:
        unknown = set(get_untrusted_types(file=path)) - set(allow_types)
        model = None if unknown else load(path, trusted=list(allow_types))
    except Exception as error:  # skops raises whatever a damaged archive leads to
        raise ConvertError(f"{path} cannot be read as a skops file: {error}") from error
    if unknown:
        options = " ".join(f"--allow-type {name}" for name in sorted(unknown))
        raise UntrustedModel(f"{path} holds types that are not known to be safe; to allow them: {options}")
    return model


def _load_pickle(path: Path, trust: bool) -> Any:
    if not trust:
        raise UntrustedModel(
            f"{path} is a pickle, and loading one runs any code that its author put there: "
            "pass --trust if you made it, or save the model with skops.io.dump instead"
        )
    import joblib

    try:
        with warnings.catch_warnings():
            # A model of another scikit-learn release loads with a warning. The gate compares what it answers
            # here, and the versions go into the lineage, so the warning itself tells a user nothing to do.
            warnings.simplefilter("ignore")
            return joblib.load(path)
    except Exception as error:  # unpickling raises anything
        raise ConvertError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error


def load_table(path: Path | str) -> pd.DataFrame:
    """The rows of a Parquet or CSV file, in their own types.

    Raises:
        BadSample: the file is missing, empty, damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise BadSample(f"there is no sample file {path}")
    if path.suffix not in TABLES:
        raise BadSample(f"{path} is no known table: expected .parquet or .csv")
    try:
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except Exception as error:  # pandas and pyarrow raise many kinds
        raise BadSample(f"{path} cannot be read: {error}") from error
    if table.empty:
        raise BadSample(f"{path} holds no rows")
    return table


def file_digest(path: Path | str) -> str:
    """The SHA-256 of a file, as hex."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
