"""Settings of the whole test run."""

import os

from hypothesis import settings

# Small models are fastest on one thread, and two processes with two threads each on two cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The examples of a property are drawn from its own text, so a run of the tests can be repeated. No deadline: the first
# example may have to compile what it calls.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")
