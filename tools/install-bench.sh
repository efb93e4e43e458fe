#!/usr/bin/env bash
# Installs the peers that `make bench-proxy` and `make bench` measure, and etcd's client: the
# distribution's packages, as root; and Patroni, in a virtual environment under target/tools. Says
# nothing when they are there, and fails when a package is missing in the end.
set -euo pipefail

cd "$(dirname "$0")/.."
say() { printf 'install-bench: %s\n' "$*" >&2; }
# shellcheck source=tools/packages.sh
. tools/packages.sh

install_programs haproxy:haproxy pgbouncer:pgbouncer etcdctl:etcd-client taskset:util-linux \
  ip:iproute2
# repmgr is built for one version of PostgreSQL; its daemon is off unless /etc/default/repmgrd says so.
for postgres in /usr/lib/postgresql/*/bin/postgres; do
  [ -x "$postgres" ] || continue
  version=$(basename "$(dirname "$(dirname "$postgres")")")
  install_programs "/usr/lib/postgresql/$version/lib/repmgr.so:postgresql-$version-repmgr" ||
    say "no repmgr for PostgreSQL $version"
done
install_patroni 'what `make bench` measures of Patroni'
