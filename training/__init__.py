"""Training: what one step does, what a run leaves behind, how several processes train as one.

It knows nothing of films.
"""
