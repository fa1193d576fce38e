"""Configs of tasksets and agents."""
