"""What happens to a photo between its file and the network: names of classes, decoding, random views,
test-time augmentation.

May import command_line.
"""
