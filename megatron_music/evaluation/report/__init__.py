"""The report of an evaluation: one page, its tables and its songs in one folder."""
