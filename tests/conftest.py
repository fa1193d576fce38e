"""Settings of the whole test run."""

import os

# Small models are fastest on one thread, and two processes with two threads each on two cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
