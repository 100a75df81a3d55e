"""Stores of features that were computed elsewhere: from arrays, npy files, Parquet, Hugging Face data sets."""
