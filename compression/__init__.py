"""The library that the scripts share, by subject.

Imports go one way: scripts -> options -> training -> dataset -> files -> {pruning, data} -> networks ->
quantization. Every module may import command_line.
"""
