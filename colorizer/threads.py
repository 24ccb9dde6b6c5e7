"""Set how long idle OpenMP threads of torch spin. Scripts import this module before torch.

GNU OpenMP lets waiting threads spin for many milliseconds. If another program uses one of the cores, this makes
coloring several times slower. Environment variables that the user has set are kept.
"""

import os

SPIN_COUNT = 1000  # iterations before a waiting thread sleeps; about the cost of waking it up

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
