"""The worker agent: runs beside an LLM server, claims jobs, keeps their leases alive, and answers."""
