"""The inner workings of one engine: what a step is made of, when it ends, and what is remembered of it.

Open `sequence.py` first, one request inside one engine, then `stepplan.py`, what the scheduler decides for a step. The rules that
decide are in `simulator/scheduler.py`, the loop that runs steps in `simulator/replica.py`.
"""
