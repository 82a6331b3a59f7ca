"""Many feature files in one Parquet file, and their predictions."""
