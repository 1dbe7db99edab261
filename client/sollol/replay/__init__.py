"""Replays a recorded log of requests against a described cluster, in virtual time, under several policies.

The claim rule and the fair order are those of the broker: the very same functions.
"""
