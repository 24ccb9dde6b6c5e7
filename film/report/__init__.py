"""Explain a colored film: report page, plots, confidence video and memory video."""
