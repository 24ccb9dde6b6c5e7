"""Color a picture from features of a frozen backbone, colors from a memory, and colors warped along optical flow.

This package does not depend on films or training.
"""
