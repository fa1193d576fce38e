"""What a run shows of itself: metrics, alarms, totals, TensorBoard."""
