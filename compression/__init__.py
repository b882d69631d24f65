"""The library that the scripts share, by subject.

Imports go one way: scripts -> stages -> options -> training -> dataset -> files -> networks -> quantization.
files also import data; stages and scripts import pruning, which imports networks. Only scripts import pages,
which import data and networks. Every module may import command_line and distributed.
"""
