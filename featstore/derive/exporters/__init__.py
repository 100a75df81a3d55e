"""Writers of npy arrays, Parquet files and Hugging Face data sets."""
