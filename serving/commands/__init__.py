"""The commands of `crossfade`, one noun a file."""
