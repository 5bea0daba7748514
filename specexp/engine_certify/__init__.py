"""The certificate of a served engine: whether what it emits is what its model gives, and what a request asks for.

An engine is asked over the OpenAI interface, and compared with plain decoding of the same engine and with weights.
`engine_subject.py` asks, the modules of checks judge, `engine_certificate.py` puts them in order.
"""
