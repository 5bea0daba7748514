"""Served engines: what speaks the OpenAI interface, asked for completions and measured from outside.

It decodes nothing itself and knows neither tasks nor records. `endpoint.py` says where a server is, `body.py` makes a
request, `stream.py` reads the answer, `client.py` sends one and retries, `acceptance.py` reads the server's counts.
"""
