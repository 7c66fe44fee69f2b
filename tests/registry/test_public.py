"""The door of the room."""

from __future__ import annotations

import inspect
import subprocess
import sys

import penstock.registry
from penstock.errors import PenstockError


def test_every_public_name_is_there_and_every_error_is_one_a_user_can_mend():
    for name in penstock.registry.__all__:
        value = getattr(penstock.registry, name)
        if inspect.isclass(value) and issubclass(value, Exception):
            assert issubclass(value, PenstockError)


def test_importing_the_registry_loads_no_numeric_library_and_no_pickle_of_models():
    code = (
        "import sys, penstock.registry; print(*{'numpy', 'joblib', 'onnxruntime', 'grpc', 'redis'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
