"""Editing: what a hand changes of a colored film. Things to fill, corrections, the palette of the show, its changes.

It knows nothing of pages: a page, or a program, calls it.
"""
