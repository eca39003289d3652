"""Prefix caching: what prompts have in common, and the blocks that remember it.

Open `cache.py` first: the pool of KV blocks with prefix caching. It extends `simulator/kv.py`, which only counts.
"""
