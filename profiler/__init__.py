"""Measures vLLM on a GPU and fits the cost models that the simulator reads.

Start with `fit.py` (what a step costs, and how that is learned), then `steps.py` (from a recorded trace to step records).
"""
