"""Served engines under load: closed and open loops, goodput, and from where speculation no longer pays.

`levels.py` says what is measured in which order, `loops.py` sends the requests, `capacity.py` and `null_server.py`
measure the client itself, `measurement.py` runs it all and resumes, `estimates.py` has the statistics, `results.py` and
`load_page.py` what is written. It decodes nothing and checks no answers: `evaluate` and `certify` do.
"""
