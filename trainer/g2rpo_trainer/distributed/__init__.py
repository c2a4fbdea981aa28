"""Several processes that train one policy: replicas, or shares of it."""
