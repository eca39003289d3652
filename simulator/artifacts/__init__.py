"""What was measured and published, as files that the simulator reads: cost models, their domain and memory, accuracy.

Open `artifact.py` first: a cost model as it is stored. `models.py` finds the one that answers for a GPU, a model and an optimization.
What a step costs is computed in `simulator/cost.py`.
"""
