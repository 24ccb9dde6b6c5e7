"""Editing of colored films: projects, corrections, color replacement and jobs; independent of the user interface."""
