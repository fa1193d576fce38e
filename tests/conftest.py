import os

from hypothesis import settings

# Before torch is imported anywhere: tests share two cores, and results should not depend on their number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The examples of a property are drawn from its own text, so a run of the tests can be repeated.
settings.register_profile("repeatable", derandomize=True, print_blob=True)
settings.load_profile("repeatable")
