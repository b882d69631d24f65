"""The work of the scripts, stage by stage, from their options to the files they write.

May import everything but the scripts; nothing but the scripts imports it.
"""
