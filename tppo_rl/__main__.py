"""`python -m tppo_rl` is the command line."""

from tppo_rl.cli import main

main()
