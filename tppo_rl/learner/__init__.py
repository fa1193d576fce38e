"""The update step and its RLlib hosts: everything that trains."""
