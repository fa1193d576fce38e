"""Sampling of tokens: engines, slots, env-runners, and their controller."""
