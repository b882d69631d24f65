"""The networks: one module per family; `registry` builds them by name.

May import command_line and quantization.folding.
"""
