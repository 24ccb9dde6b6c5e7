"""Adaptation to films and references whose tones or colors differ from the training frames."""
