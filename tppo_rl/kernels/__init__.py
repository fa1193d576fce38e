"""What makes small models fast on a CPU."""
