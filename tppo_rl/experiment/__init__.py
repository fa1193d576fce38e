"""Whole runs: start, train, checkpoint, display, summary, figures."""
