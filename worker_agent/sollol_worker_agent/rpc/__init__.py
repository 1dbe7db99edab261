"""llama.cpp's RPC servers: found, started, asked, and reached through a tunnel.

Which nodes form a group, and when, the coordinator knows.
"""
