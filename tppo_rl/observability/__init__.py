"""Records of a run: metrics, alarms, totals, TensorBoard."""
