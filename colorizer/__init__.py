"""The colorizer: what colors a picture, by what a frozen network sees, a memory recalls and the flow carries.

It knows nothing of films and of training.
"""
