#!/usr/bin/env bash
# Installs the servers that tests/ecosystem talks to, PostgreSQL and Redis, and wrk, with which tests/load drives one. What is
# there already is left alone.
#
#   tools/setup_servers.sh
#
# The packages come from apt-get where root or sudo without a password is there; otherwise the line to run is printed
# and the script stops. The tests start servers of their own; an instance that a package starts is not used.
set -euo pipefail

say() { echo "setup: $*" >&2; }

# Debian keeps PostgreSQL's programs out of PATH.
has_program() { # has_program NAME
    command -v "$1" >/dev/null || compgen -G "/usr/lib/postgresql/*/bin/$1" >/dev/null
}

packages=()
has_program initdb || packages+=(postgresql)
has_program redis-server || packages+=(redis-server)
has_program wrk || packages+=(wrk)
if [ ${#packages[@]} = 0 ]; then exit 0; fi

as_root=()
if [ "$(id -u)" != 0 ]; then as_root=(sudo -n); fi
if ! command -v apt-get >/dev/null || ! "${as_root[@]}" true 2>/dev/null; then
    say "programs that tests/ecosystem and tests/load need are missing. On Debian and Ubuntu run"
    say "    sudo apt-get install ${packages[*]}"
    say "and then the same command again. On other systems install PostgreSQL, Redis and wrk."
    exit 1
fi
say "installing ${packages[*]}"
install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    apt-get install -y -qq --no-install-recommends "${packages[@]}")
"${install[@]}" >/dev/null 2>&1 || { "${as_root[@]}" apt-get update -qq && "${install[@]}" >/dev/null; }
