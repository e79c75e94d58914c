"""Statistics of online experiments: pure functions over sufficient statistics."""
