"""The grids that weights are rounded to, and batch normalisation folded into the layer before it.

May import command_line.
"""
