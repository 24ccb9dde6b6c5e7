"""Read and write films: decoding, pixel formats, image sequences, encoding and muxing."""
