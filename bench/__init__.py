"""How fast the simulator is, beside the fastest peer: `python -m bench`."""
