"""HTML pages to look at: the report of an evaluation and the gallery of a prediction, with their templates.

May import command_line, data and networks. Only scripts import it.
"""
