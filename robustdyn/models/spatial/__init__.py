"""The spatial-wise dynamic models."""
