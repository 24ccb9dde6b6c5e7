"""A film: how it is read, where its shots are, how it is colored shot by shot, written and shown.

It knows nothing of how anything is trained.
"""
