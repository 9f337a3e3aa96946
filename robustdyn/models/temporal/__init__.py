"""The temporal-wise dynamic models."""
