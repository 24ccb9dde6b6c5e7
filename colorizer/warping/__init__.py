"""Optical flow, warping of colors along it, and guided upsampling of colors."""
