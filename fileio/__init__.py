"""Reading and writing of image, checkpoint and cache files, atomic writing, and names of output files."""
