"""Experiments: specification, assignment, evidence, gate, ramp and their stores."""
