#!/usr/bin/env bash
# The site's tests drive a real Chromium: use the system's, or get one where that is possible.
set -u
for name in chromium chromium-browser google-chrome google-chrome-stable; do
  command -v "$name" >/dev/null && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "Installing Chromium with apt ..."
  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-liberation >/dev/null && exit 0
fi
.venv/bin/python -m playwright install chromium && exit 0
echo "*** NO CHROMIUM: there is none on this machine and none could be installed. The browser tests will FAIL. ***" >&2
echo "*** Install chromium or google-chrome and run make test again.                                         ***" >&2
exit 0
