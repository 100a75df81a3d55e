"""Search for a student's architecture without training it.

config.py     settings of the command
space.py      students that are searched: timm's arguments with choices
probe.py      the probe batch: what the teacher makes of a few images of the store
scores.py     scores of untrained students on the probe batch, by name
bench.py      parameters, MACs, latency and scores of one student
evolution.py  which students are scored
found.py      what was found: scores, costs, limits
search.py     the search, its table and its files
slices.py     the search among the sizes of trained slimmable students
judge.py      how well the scores rank students that were distilled
"""
