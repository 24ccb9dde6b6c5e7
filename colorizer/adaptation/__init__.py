"""Adapt to a film or to references whose tones or colors differ from the training frames."""
