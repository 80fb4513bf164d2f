"""Sampling on vLLM servers over HTTP; this process never imports vllm (`on_server` runs in the servers' environment)."""
