"""From photo files to network inputs: class names, folders, decoding, augmentation, test-time augmentation.

May import command_line.
"""
