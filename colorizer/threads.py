"""How do torch's threads wait for each other? Asleep, so that a core that is busy elsewhere does not hold them up.

GNU's OpenMP lets a thread that waits spin for many milliseconds. Where another program has one of the cores, the thread
that is waited for cannot run there, and spinning takes the time that it would need: coloring takes several times as
long. The environment is read when torch is imported, so scripts import this module before it; who has set one of the
variables is not overruled.
"""

import os

SPINS = 1000  # then a thread sleeps; about as much as waking it costs

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
