"""The networks: one module for each family, found and built by name through `registry`.

May import command_line and quantization.folding.
"""
