"""Pruning: choosing channels or ranks, and building the smaller network.

May import command_line and networks.
"""
