"""Fixtures of all tests."""

import pytest
from drawn import be_quick


@pytest.fixture(autouse=True, scope="session")
def quick_trainings():
    be_quick()
