"""File formats of images, checkpoints and caches, and atomic writing."""
