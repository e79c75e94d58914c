"""FP8 kernels for Hopper GPUs and the engine's FP8 arithmetic."""
