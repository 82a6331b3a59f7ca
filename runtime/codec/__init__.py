"""The feature file, entropy tables and bundles: what both ends must agree on, byte by byte."""
