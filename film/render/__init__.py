"""Coloring of pictures and films: frame pipeline, work queue for several processes, segment storage and writers."""
