"""Adapters of the ports: SQL, Redis, and in-memory ones that pass the same contract suite."""
