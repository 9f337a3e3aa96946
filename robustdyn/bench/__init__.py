"""What `robustdyn bench` measures: the time of kernels and of models, against dense execution."""
