#!/usr/bin/env bash
# Installs what `make demo` and `make test` need and what is missing: the PostgreSQL server and etcd
# of the distribution (Debian, Ubuntu and their kin). Says nothing when everything is there.
#
#   as root            apt-get install
#   as ordinary user   sudo -n, where that needs no password; else the packages are unpacked under
#                      target/tools (tools/env.sh puts them on the path); else the one command to
#                      run is printed, and the exit status is not 0
#
# No prompt, no cluster, no service: the package's `main` cluster is not created, nothing is
# started, and what the packages enable is disabled again.
set -euo pipefail

cd "$(dirname "$0")/.."
readonly TOOLS="$PWD/target/tools"
readonly PG_VERSION_MIN=14
# apt tries again by itself; a mirror that hangs must not hang us.
readonly APT_OPTIONS=(-q -y -o Acquire::Retries=3 -o Acquire::http::Timeout=30
  -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold
  -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300)

say() { printf 'install: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# ---- what is there ---------------------------------------------------------------------------

have_postgres() {
  local server directory version
  for server in $(compgen -G '/usr/lib/postgresql/*/bin/postgres' || true) \
    $(compgen -G "$TOOLS/usr/lib/postgresql/*/bin/postgres" || true) \
    $(command -v postgres || true); do
    directory=$(dirname "$server")
    [ -x "$directory/initdb" ] && [ -x "$directory/pg_basebackup" ] &&
      [ -x "$directory/pg_rewind" ] || continue
    version=$("$server" --version 2>/dev/null | sed -n 's/.*) \([0-9]*\).*/\1/p') || continue
    [ "${version:-0}" -ge "$PG_VERSION_MIN" ] && return 0
  done
  return 1
}

have_etcd() {
  command -v etcd >/dev/null || [ -x "$TOOLS/usr/bin/etcd" ]
}

# The packages that are missing; newer releases call the server etcd-server, older ones etcd.
missing_packages() {
  have_postgres || echo postgresql
  have_etcd || { candidate etcd-server && echo etcd-server || echo etcd; }
}

# Whether apt could install a package; further arguments are apt's. (No `grep -q`: it would end the
# pipe early, which pipefail takes for a failure.)
candidate() {
  local package=$1
  shift
  [[ $(LC_ALL=C apt-cache "$@" policy "$package" 2>/dev/null) == *'Candidate: '[0-9]* ]]
}

check_cargo() {
  command -v cargo >/dev/null && return
  [ -x "$HOME/.cargo/bin/cargo" ] &&
    die 'cargo is installed but not on the path: run  . "$HOME/.cargo/env"  and try again'
  die 'cargo is missing: install a Rust toolchain (https://rustup.rs) and try again'
}

# ---- as root ---------------------------------------------------------------------------------

# While packages are installed, invoke-rc.d asks this program and starts nothing. Whatever was there
# before is put back, also after a failure.
readonly POLICY=/usr/sbin/policy-rc.d
readonly CREATE_CLUSTER=/etc/postgresql-common/createcluster.conf
readonly MARK=before-pgherd

keep_services_down() {
  trap restore EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  # Ours is still there when an earlier run was killed: it must not become what is put back.
  if [ -e "$POLICY" ] && ! grep -q "$MARK" "$POLICY"; then mv "$POLICY" "$POLICY.$MARK"; fi
  printf '#!/bin/sh\n# %s\nexit 101\n' "$MARK" >"$POLICY"
  chmod 755 "$POLICY"
}

restore() {
  rm -f "$POLICY"
  if [ -e "$POLICY.$MARK" ]; then mv "$POLICY.$MARK" "$POLICY"; fi
  if [ -e "$CREATE_CLUSTER.$MARK" ]; then mv "$CREATE_CLUSTER.$MARK" "$CREATE_CLUSTER"; fi
}

# The postgresql-NN package creates a cluster `main` when it is configured, unless this file says
# no; it comes with postgresql-common, which is therefore installed first.
forbid_main_cluster() {
  apt-get install "${APT_OPTIONS[@]}" --no-install-recommends postgresql-common || return 1
  if [ -e "$CREATE_CLUSTER" ] && [ ! -e "$CREATE_CLUSTER.$MARK" ]; then
    cp -p "$CREATE_CLUSTER" "$CREATE_CLUSTER.$MARK"
  fi
  printf 'create_main_cluster = false\n' >>"$CREATE_CLUSTER"
}

# What a package has enabled, on a machine with an init system.
disable_service() {
  if command -v systemctl >/dev/null; then
    compgen -G "/lib/systemd/system/$1.service" >/dev/null || return 0
    if systemctl is-active --quiet "$1" 2>/dev/null; then systemctl stop "$1" || true; fi
    systemctl --quiet disable "$1" 2>/dev/null || say "note: could not disable the service $1"
  elif command -v update-rc.d >/dev/null && [ -e "/etc/init.d/$1" ]; then
    update-rc.d "$1" disable >/dev/null 2>&1 || say "note: could not disable the service $1"
  fi
}

install_as_root() {
  export DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l
  local package services=() status=0
  local packages=("$@")
  say "installing ${packages[*]} with apt-get"
  for package in "${packages[@]}"; do
    candidate "$package" && continue
    apt-get update "${APT_OPTIONS[@]}" || say 'apt-get update failed; going on with what is known'
    # Only now the name of etcd's package is known.
    mapfile -t packages < <(missing_packages)
    break
  done
  keep_services_down
  for package in "${packages[@]}"; do
    case $package in
      postgresql)
        # A machine that has clusters keeps its service as it is.
        compgen -G '/etc/postgresql/*/*' >/dev/null || services+=(postgresql)
        forbid_main_cluster || status=1
        ;;
      *) services+=(etcd) ;;
    esac
  done
  if [ "$status" -eq 0 ]; then
    apt-get install "${APT_OPTIONS[@]}" --no-install-recommends "${packages[@]}" || status=1
  fi
  # Also after a failure: what was installed until then has enabled its service.
  for package in "${services[@]}"; do disable_service "$package"; done
  restore
  trap - EXIT INT TERM
  return "$status"
}

# ---- as an ordinary user without sudo --------------------------------------------------------

# Packages that an unpacked server does not use: the cluster manager and its perl, just-in-time
# compilation, certificates, init scripts.
readonly NOT_UNPACKED='^(postgresql|postgresql-common.*|postgresql-client-common|lib.*-perl|perl.*|libllvm.*|libclang.*|ssl-cert|adduser|lsb-base|sysvinit-utils|init-system-helpers|sensible-utils|ucf|debconf|libc6|tzdata|openssl|netbase)$'

unpack_as_user() {
  local packages=("$@")
  local state="$TOOLS/apt" wanted=()
  command -v dpkg >/dev/null && command -v apt-get >/dev/null || return 1
  say "installing ${packages[*]} under target/tools (no root, no sudo)"
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$state/debs"
  local apt=(-o Dir::State="$state" -o Dir::State::status=/var/lib/dpkg/status
    -o Dir::Cache="$state/cache" -o Debug::NoLocking=1)
  # The machine's own package lists serve where it has them.
  local lists=(-o Dir::State::lists=/var/lib/apt/lists)
  if ! simulate "${apt[@]}" "${lists[@]}" "${packages[@]}" >"$state/plan"; then
    lists=(-o Dir::State::lists="$state/lists")
    apt-get "${APT_OPTIONS[@]}" "${apt[@]}" "${lists[@]}" update >&2 || return 1
    if [[ " ${packages[*]} " == *' etcd '* ]]; then
      candidate etcd-server "${apt[@]}" "${lists[@]}" &&
        packages=("${packages[@]/%etcd/etcd-server}")
    fi
    simulate "${apt[@]}" "${lists[@]}" "${packages[@]}" >"$state/plan" || return 1
  fi
  mapfile -t wanted < <(sed -n 's/^Inst \([^ ]*\).*/\1/p' "$state/plan" |
    sed 's/:.*//' | grep -Ev "$NOT_UNPACKED")
  [ "${#wanted[@]}" -gt 0 ] || return 1
  (cd "$state/debs" && apt-get -q "${apt[@]}" "${lists[@]}" download "${wanted[@]}" >&2) || return 1
  local archive
  for archive in "$state"/debs/*.deb; do dpkg -x "$archive" "$TOOLS" || return 1; done
  # Just-in-time compilation would need all of LLVM; without the module PostgreSQL does without.
  rm -f "$TOOLS"/usr/lib/postgresql/*/lib/llvmjit.so
  rm -rf "$state"
}

simulate() {
  apt-get -q --simulate --no-install-recommends install "$@" 2>/dev/null
}

# ---- the way that is open here ---------------------------------------------------------------

main() {
  local packages
  # The half that runs by sudo: the toolchain is the user's, not root's.
  [ "${1:-}" = --packages ] || check_cargo
  mapfile -t packages < <(missing_packages)
  [ "${#packages[@]}" -eq 0 ] && return
  if ! command -v apt-get >/dev/null; then
    die "this is neither Debian nor Ubuntu: install PostgreSQL $PG_VERSION_MIN or newer (server," \
      "initdb, pg_basebackup, pg_rewind; often called postgresql-server) and etcd with your" \
      "package manager, then try again"
  fi
  local command="apt-get update && apt-get install ${packages[*]}"
  if [ "$(id -u)" -eq 0 ]; then
    install_as_root "${packages[@]}" >&2 || die "apt-get failed; by hand:  $command"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    sudo -n "$PWD/tools/install.sh" --packages >&2 || die "apt-get failed; by hand:  sudo sh -c '$command'"
  elif ! unpack_as_user "${packages[@]}"; then
    die "cannot install without root; run once:  sudo sh -c '$command'"
  fi
  [ "${1:-}" = --packages ] || verify
}

# Nothing is believed of the package manager: the programs must run.
verify() {
  # shellcheck source=tools/env.sh
  . tools/env.sh
  have_postgres || die "PostgreSQL $PG_VERSION_MIN or newer is still missing after the installation"
  have_etcd || die 'etcd is still missing after the installation'
  etcd --version >/dev/null || die 'etcd does not run'
  say 'done'
}

main "$@"
