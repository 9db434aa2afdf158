#!/usr/bin/env bash
# Runs the quick tests of core and the token level under every other Python from 3.11 on that this
# machine has. Says which it found, which it tried, and why one was left out. Fails when a test fails.
# usage: other_interpreters.sh PYTHON-THAT-RAN-EVERYTHING
set -u
cd "$(dirname "$0")/.."

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

supported() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# One path per version: names on PATH first, then what pyenv keeps.
candidates() {
  local minor
  for minor in $(seq 11 30); do command -v "python3.$minor"; done
  command -v python3
  ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python3 2>/dev/null
}

try() {
  local python=$1 venv=build/python$2 log=build/python$2.log
  mkdir -p build
  "$python" -m venv "$venv" >"$log" 2>&1 &&
    "$venv/bin/python" -m pip install ${PIP_ARGS:-} -c constraints.txt -e '.[test]' >>"$log" 2>&1 ||
    { echo "Python $2 ($python): not tried, it could not be set up (see $log)"; return 0; }
  echo "Python $2 ($python): tests of core and the token level"
  OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest -m "not slow" tests/core tests/token_level
}

done_versions=" $(version_of "$1") "
echo "Python$done_versions($1): all tests, above"
failed=0
for python in $(candidates); do
  supported "$python" || continue
  version=$(version_of "$python")
  case "$done_versions" in *" $version "*) continue ;; esac
  done_versions+="$version "
  try "$python" "$version" || failed=1
done
echo "Interpreters found, 3.11 and newer:$done_versions"
exit $failed
