"""Benchmarks. Run them from the root of the project: ``python -m benchmarks.NAME``; each documents its output."""

import colorizer.threads  # noqa: F401  before torch is imported
