"""The first pass over a film: shots, transitions, letterbox, exposure and noise."""
