#!/usr/bin/env bash
# The site's tests drive a real Chromium: use the system's, or get one where that is possible.
set -u
[ "${HDLIB_NO_BROWSER:-}" = 1 ] && exit 0
starts() {  # a name on the path may be an empty shell that only says how to install the browser
  for name in chromium chromium-browser google-chrome google-chrome-stable; do
    "$name" --version >/dev/null 2>&1 && return 0
  done
  return 1
}
starts && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "Installing Chromium with apt ..."
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-liberation >/dev/null && starts && exit 0
fi
.venv/bin/python -m playwright install chromium && exit 0
echo "*** NO CHROMIUM: there is none on this machine and none could be installed. The browser tests will FAIL. ***" >&2
echo "*** Install chromium or google-chrome, or leave them out: make test HDLIB_NO_BROWSER=1                 ***" >&2
exit 0
