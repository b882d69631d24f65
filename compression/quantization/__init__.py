"""Quantization grids for weights, and folding of batch normalisation into the layer before it.

May import command_line.
"""
