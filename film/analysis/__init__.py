"""Analysis of films before they are colored or used for training: shots, transitions, letterbox, exposure and grain."""
