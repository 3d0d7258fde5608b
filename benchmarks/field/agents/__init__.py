"""Tool calls of agents under the libraries that have a decorator for MCP: real servers over HTTP, and two users."""
