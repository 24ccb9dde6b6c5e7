"""Editing: what a hand changes of a colored film. Things to fill, a frame's correction, the show's palette, its changes.

It knows nothing of pages: a page, or a program, calls it.
"""
