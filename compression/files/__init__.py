"""Every file that is read or written: model files, checkpoints, other programs' files, records.

May import command_line, data, networks and quantization.
"""
