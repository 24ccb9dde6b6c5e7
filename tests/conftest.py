"""What holds for all tests."""

import pytest

from drawn import few_looks


@pytest.fixture(autouse=True, scope="session")
def quick_voters():
    """Voters learn from a few looks in a few steps."""
    few_looks()
