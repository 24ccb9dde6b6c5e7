"""Editing of a colored film: projects, corrections, color replacement and background jobs, independent of the page."""
