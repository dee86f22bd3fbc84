"""Layers shared between machines: signed entries and their chunks, in a folder, a bucket or behind a web server.

::

    entries/KEY.json      what a node left, with all the layers below it; signed (entry, trust)
    chunks/ab/abcdef…     pieces of layers, packed and compressed, by the SHA-256 of their bytes (pack)

What is there is data from outside: nothing is used that no listed key signed, or whose digest or size is another. What
cannot be had is made here, as if there were no shared cache.
"""
