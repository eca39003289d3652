"""Services whose replicas are not all alike, or do not stay: failures, autoscaling, pools of other GPUs, prefill apart from decode.

Open `fleet.py` first: on which node a replica runs, and what is started, drained, stopped or broken there. A service of equal
replicas that stays as it is needs only `simulator/cluster.py`.
"""
