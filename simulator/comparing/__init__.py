"""Services held beside each other under the same traffic, and beside what was published about them.

Open `compare.py` first: a service and its variants, seed by seed.
"""
