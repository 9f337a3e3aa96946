"""The model zoo: one file per family, found by the registry."""
