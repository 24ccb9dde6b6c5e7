"""Reports on colored films: evaluation, HTML report, suggested frames, confidence and memory videos, figures."""
