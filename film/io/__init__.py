"""Reading and writing of films: decoding, pixel formats, image sequences, encoding and muxing."""
