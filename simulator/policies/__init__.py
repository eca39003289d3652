"""Scheduling remedies that vLLM lacks: other queues, other victims, admission by prediction. All of them are off by default.

Open `policy.py` first: the remedies as a config names them. `predictor.py` is all that they know of lengths to come.
"""
