"""The library that the scripts share, by subject.

Imports go one way: scripts -> options -> training -> dataset -> files -> {pruning, data} -> networks ->
quantization; only scripts import pages, which stand above data and networks. Every module may import
command_line.
"""
