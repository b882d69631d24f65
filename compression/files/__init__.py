"""Every file that is read or written: models, checkpoints, other programs' files, records, decoded photos.

May import command_line, data, networks and quantization.
"""
