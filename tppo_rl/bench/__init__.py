"""Measurements of this machine: `tppo-rl bench`. Each file has one function that returns figures."""
