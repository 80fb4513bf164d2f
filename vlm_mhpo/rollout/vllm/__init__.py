"""Sampling on vLLM servers over HTTP; vllm is never imported (`on_server` runs in the servers' environment)."""
