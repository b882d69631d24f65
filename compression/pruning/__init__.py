"""Which channels or ranks of a network go, and the network without them.

May import command_line and networks.
"""
