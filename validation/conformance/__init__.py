"""Decision for decision: the simulator's scheduler beside vLLM's own, driven through the same random workloads."""
