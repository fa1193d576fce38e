"""What the adapter uses of verifiers 0.4, in its shape: the package cannot be installed beside the locked versions."""
