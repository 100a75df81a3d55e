"""Compare images by their stored features: find equal files and near duplicates, and choose images to train on.

groups.py            equal files by SHA-256; groups of duplicates across parts of a data set
near_duplicates.py   pairs of images with nearly equal features
unit_vectors.py      vectors of a field, normalised, in blocks
choose.py            rows near to some, unlike others, diverse, without duplicates; clusters.py: k-means
"""
