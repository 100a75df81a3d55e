"""A grid of runs over one store, described by one file: expanded, checked, run, compared.

    located.py   YAML that remembers where each value stands
    spec.py      the experiment file: variants, grid, tuning, checked strictly
    plan.py      rows and runs: settings made whole, duplicates found, finished runs found again
    pool.py      worker processes that take one item after another
    work.py      what a worker does: one run, with all that runs share kept in memory
    tune.py      a small search per row, decided on a validation part
    outcome.py   the rows compared: means, paired tests, cost
    table.py     the same as text, Markdown, CSV and JSON
    command.py   all of it in order, as the command does it

Importing this package is cheap; torch is imported where runs are checked and made.
"""
