"""Decoding on a GPU: one engine for every arithmetic, with kernels of its own."""
