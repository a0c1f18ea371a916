"""One room for each of the jobs that a user asks for."""
