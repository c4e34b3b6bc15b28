"""Models and data: fetched or made once, verified against ``configs/assets.lock.yaml``, shared under ``resources/``."""

from parsimony.assets.lock import read_lock
from parsimony.assets.store import Unavailable, fetch, load_path, verify

__all__ = ["Unavailable", "fetch", "load_path", "read_lock", "verify"]
