"""JAX compiles one function for the processor; its monitoring counts hits and misses of the persistent cache."""

import json
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
import jax
import jax.numpy as jnp

counts = {"hits": 0, "misses": 0}


def count(event, **_):
    for name in counts:
        if event.endswith(f"compilation_cache/cache_{name}"):
            counts[name] += 1


jax.monitoring.register_event_listener(count)
assert float(jax.jit(lambda x: jnp.sin(x) * 2 + 1)(jnp.float32(0))) == 1.0
assert counts["hits"] + counts["misses"] > 0, "the persistent cache is off"
print(json.dumps({"compiled": counts["misses"], "hits": counts["hits"]}))
