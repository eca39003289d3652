"""Speculative decoding inside the engine: verify steps, their stretches, and from which batch on drafts hurt.

Open `verify.py` first: the scheduler of an engine that verifies drafts. How many of them are accepted is in `simulator/speculation.py`.
"""
