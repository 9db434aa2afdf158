"""A stand-in for the process that runs math-verify: equal texts are equal, and some words make trouble."""

from __future__ import annotations

import json
import os
import sys
import time

print('"ready"', flush=True)
for line in sys.stdin:
    one, other = json.loads(line)
    if "hang" in (one, other):
        time.sleep(600)
    if "die" in (one, other):
        os._exit(1)
    print(json.dumps(one.strip("+") == other.strip("+")), flush=True)
