"""Conformance suites: what every provider of an API must do, whoever wrote it."""
