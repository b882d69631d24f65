"""Comparisons of training runs, benchmarks, and the toy photos. Nothing imports this package but the tests
and the report.
"""
