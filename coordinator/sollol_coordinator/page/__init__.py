"""The monitoring page: a small Flask service that reads Redis and keeps nothing of its own.

`server.Page` is the service, `cli` the command `sollol-dashboard`. `hub.py` is the one reader behind all browsers,
`looks.py` says what can be looked at, `gate.py` who may, `actions.py` what an operator can do.
"""
