"""The process that compares answers by math-verify: lines of JSON in, one verdict out for each.

Run as `python -m tokenscale.sequence_level.answers.worker` by `judge.py`, which ends it when it hangs.
"""

from __future__ import annotations

import json
import os
import sys

# A power tower takes all the memory of a machine long before it takes the time that it is given.
MEMORY_BYTES = 4 * 2**30


def main() -> None:
    """Answers every pair of standard input with true or false, until it ends. The first line says "ready"."""
    # The grammar's runtime prints warnings to standard output: they go to standard error instead.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _limit_memory()
    from math_verify import parse, verify

    def expressions(answer: str) -> list[object]:
        # Timeouts of the library use an alarm signal: None switches them off, the parent has its own.
        found: list[object] = parse(rf"\boxed{{{answer}}}", parsing_timeout=None)
        return found

    replies.write('"ready"\n')
    replies.flush()
    for line in sys.stdin:
        try:
            one, other = map(expressions, json.loads(line))
            equal = bool(one and other) and bool(verify(one, other, timeout_seconds=None))
        except Exception:  # of any kind, deep in sympy: what cannot be compared is not equal
            equal = False
        replies.write(json.dumps(equal) + "\n")
        replies.flush()


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main()
