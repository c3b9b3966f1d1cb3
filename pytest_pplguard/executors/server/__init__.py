"""A checkpoint behind an OpenAI-compatible completions endpoint.

``settings`` checks what the user gave, ``client`` asks over HTTP, ``answers`` reads
what comes back, ``offer`` is one of the server's models by both, ``subject`` scores
windows with it, ``executor`` finds out what the server is and which model is meant.
"""
