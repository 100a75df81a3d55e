"""Many runs over one store, described by one file: expanded, checked, trained, compared.

    cli.py           the command ``distill experiments``
    spec.py          read the experiment file: variants, grid, tuning
    plan.py          rows and runs: complete settings, duplicates, finished runs
    runs_to_do.py    which runs are finished, begun or new
    command.py       check all runs, train them, write tables
    pool.py          worker processes, each with its GPU and cores
    worker.py        one run in a worker, with data shared between its runs
    machine.py       how many runs this machine can do at a time
    tune.py          choose settings per row on validation images
    results.py       compare rows: means, paired tests
    cost.py          cost of the extraction against live teachers
    table.py         the table as text, Markdown, CSV and JSON

Importing this package is cheap; torch is imported where runs are checked and trained.
"""
