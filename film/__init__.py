"""Reading, analysis, coloring and writing of films, and reports about them.

The package does not depend on the training code.
"""
