"""Indexes that find the vectors nearest to another."""
