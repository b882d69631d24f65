"""Every file that is read or written: model files, checkpoints, other programs' files, records, decoded photos.

May import command_line, data, networks and quantization.
"""
