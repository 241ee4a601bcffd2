"""Your answers in exercises/, one test each: `python -m pytest tests/exercises -k pooling`. What is not filled in yet is skipped."""

import importlib

import pytest
from checks import CHECKS


@pytest.mark.parametrize("name", CHECKS)
def test_answer(name):
    try:
        CHECKS[name](importlib.import_module(f"exercises.{name}"))
    except NotImplementedError:
        pytest.skip(f"exercises/{name}.py is not filled in yet")
