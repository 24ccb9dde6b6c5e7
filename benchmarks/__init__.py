"""Benchmarks: ``python -m benchmarks.NAME``, run in the root of the project. Each module documents its output."""

import colorizer.threads  # noqa: F401  before torch is imported
