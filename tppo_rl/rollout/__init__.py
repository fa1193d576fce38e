"""Engines, slots and env-runners: everything that samples tokens."""
