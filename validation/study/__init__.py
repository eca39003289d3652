"""The result tables of the study that this project answers to: arXiv 2510.18672 (ICLR 2026), CC BY 4.0, all 384 cells in `tables.csv`.

Columns: table, model, cfg (batch size, or the optimization), budget (the client's max_tokens), dataset, acc (percent), time_s, tps,
ttfvt, out_tok, n_req. Not to be trusted: `64mis` in Table 5 (rows of another model), the budgets of Table 12, 24375 tokens in Table 10
(a misprint).
"""
