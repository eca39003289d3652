"""Holds the simulator against what real engines did: measured traces are replayed, and the differences said."""
