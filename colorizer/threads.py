"""Settings for many threads: how long idle threads spin, and how many areas of memory they allocate from. Scripts
import this module before torch. Environment variables that the user has set are kept.

GNU OpenMP lets waiting threads of torch spin for many milliseconds. If another program uses one of the cores, this
makes coloring several times slower.

The GNU C library gives each thread an area of its own ("arena"), up to 8 per core, and keeps what is freed there. With
2 areas, coloring takes a fifth to a quarter less memory and no more time.
"""

import ctypes
import os
import sys

SPIN_COUNT = 1000  # iterations before a waiting thread sleeps; about the cost of waking it up
ARENAS = 2  # areas of memory; more: less waiting for each other, more memory
M_ARENA_MAX = -8  # parameter of mallopt

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # None in other C libraries
    if mallopt is not None:
        mallopt(M_ARENA_MAX, ARENAS)
