"""The clients in front of a service: who sends when, who waits, and who gives up.

Open `clients.py` first: clients that wait as long as it takes. Those of `impatience.py` do not.
"""
