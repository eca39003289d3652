"""How the planner finds the smallest service: which sizes it tries, what it makes of their runs, and how sure that is.

Open `search.py` first: which sizes are tried, and which of them is the answer. `simulator/plan.py` puts the parts together.
"""
