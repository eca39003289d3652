"""`python -m validation.study`: writes `models/accuracy.csv` from the study's tables."""

from __future__ import annotations

from simulator.artifacts.accuracy import PATH
from validation.study.tables import accuracies

if __name__ == "__main__":
    PATH.write_text(accuracies().to_csv(index=False, lineterminator="\n"), encoding="utf-8")
    print(PATH)
