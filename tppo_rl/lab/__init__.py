"""The laboratory: what a critic knows of a policy's returns, beside what it could know."""
