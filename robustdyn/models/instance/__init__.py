"""The instance-wise dynamic models."""
