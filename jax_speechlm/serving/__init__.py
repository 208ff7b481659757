"""Trained runs as a service: `jax-speechlm serve`: an HTTP endpoint in OpenAI's form, and a page that calls it."""
