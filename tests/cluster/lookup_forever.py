"""Serves a store in a cluster until it is killed.

python lookup_forever.py ADDRESS USER PASSWORD LOCAL_DIR LEASE_SECONDS
"""

import json
import sys
import time

import bandana_kv

address, user, password, local_dir, lease = sys.argv[1:]
store = bandana_kv.open(
    address, local_dir=local_dir, user=user, password=password, lease_seconds=float(lease)
)
print(json.dumps({"version": store.version}), flush=True)
while True:
    store.multi_get("t", range(400))
    time.sleep(0.02)
