"""Seeded, vectorised simulation of the procedures: what they promise, shown on users that click, spend and return."""
