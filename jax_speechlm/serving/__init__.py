"""A trained run as a service: `jax-speechlm serve`. An HTTP endpoint in OpenAI's form, and a page that calls it."""
