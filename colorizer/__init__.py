"""Colorization of a picture from backbone features, remembered colors, and colors warped along optical flow.

This package does not depend on films or training.
"""
