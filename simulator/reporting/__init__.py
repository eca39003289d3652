"""What is said of runs and plans: figures, words, screens, charts and pages.

Open `summary.py` first: the figures of a run. `screen.py` says them in words, `page.py` shows a plan as an HTML file; a plan on one
screen is `simulator/report.py`.
"""
