"""The library that the scripts share, by subject.

Imports go one way: scripts -> options -> training -> dataset -> files -> {pruning, data} -> networks ->
quantization. Only scripts import pages, which import data and networks. Every module may import
command_line.
"""
