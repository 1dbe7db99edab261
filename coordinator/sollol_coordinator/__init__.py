"""The coordinator's room: the election of a leader; RPC groups and the monitoring page come here.

Nothing in this release needs it. What must happen without a coordinator (rescuing the jobs of dead
workers, ending jobs at their deadline) every worker does by itself.
"""
