"""Optical flow, and colors warped along it or upsampled along edges."""
