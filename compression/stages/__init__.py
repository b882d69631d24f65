"""What the scripts do, stage by stage, from their options to the files they leave.

May import everything but the scripts; nothing but the scripts imports it.
"""
