"""Many feature files at once, in Parquet."""
