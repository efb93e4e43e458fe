# shellcheck shell=bash
# Sourced by install-test.sh and install-bench.sh: programs of the distribution that tests and
# benchmarks call. No service is started, and none is left enabled.

readonly PATRONI='patroni[etcd3]==4.1.4 psycopg2-binary==2.9.13'
readonly PATRONI_PLACE="$PWD/target/tools/patroni"

# Debian asks this program before a package starts a service. One that is there is left alone: it
# has its own answer.
readonly SERVICES=/usr/sbin/policy-rc.d
without_services() {
  [ -e "$SERVICES" ] && {
    "$@"
    return
  }
  printf '#!/bin/sh\nexit 101\n' >"$SERVICES"
  chmod 755 "$SERVICES"
  local status=0
  "$@" || status=$?
  rm -f "$SERVICES"
  return "$status"
}

# Whether it is there: a program, or a file by its whole path.
is_there() {
  case $1 in
    /*) [ -e "$1" ] ;;
    *) PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null ;;
  esac
}

# Arguments: WHAT:PACKAGE, a program or a file and where it comes from. Fails if one is missing at
# the end.
install_programs() {
  local entry packages=()
  for entry in "$@"; do is_there "${entry%%:*}" || packages+=("${entry##*:}"); done
  [ "${#packages[@]}" -eq 0 ] && return
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    say "these packages are missing: ${packages[*]} (install them as root)"
    return 1
  fi
  say "installing ${packages[*]} with apt-get"
  export DEBIAN_FRONTEND=noninteractive
  local get=(apt-get install -q -y -o DPkg::Lock::Timeout=60 --no-install-recommends)
  without_services "${get[@]}" "${packages[@]}" >&2 || {
    apt-get -q update >&2 || true
    without_services "${get[@]}" "${packages[@]}" >&2 || {
      say "apt-get failed: ${packages[*]} are missing"
      return 1
    }
  }
  # Nor at the next boot.
  local package
  for package in haproxy pgbouncer; do
    if [[ " ${packages[*]} " == *" $package "* ]] && command -v systemctl >/dev/null; then
      systemctl --quiet disable "$package" >&2 || true
    fi
  done
}

# Run as root, tests and benchmarks run Patroni as another user, who may not reach every python3.
python_for_all() {
  local python
  for python in /usr/bin/python3 "$(command -v python3)"; do
    [ -x "$python" ] && "$python" -c 'import ensurepip, venv' 2>/dev/null && echo "$python" && return
  done
  return 1
}

# Packages of Python into a virtual environment: its place, what fails without it, the packages.
install_environment() {
  local place=$1 without=$2 packages=$3
  [ "$(cat "$place/installed" 2>/dev/null)" = "$packages" ] && return
  local python list
  python=$(python_for_all) || {
    say "$without will fail: python3 has no venv (Debian: the package python3-venv)"
    return
  }
  say "installing $packages under target/tools"
  rm -rf "$place"
  read -r -a list <<<"$packages"
  if ! "$python" -m venv "$place" || ! "$place/bin/python" -m pip --quiet \
    --no-input --disable-pip-version-check --timeout 30 --retries 3 install "${list[@]}"; then
    rm -rf "$place"
    say "$without will fail: $packages could not be installed (messages above)"
    return
  fi
  chmod -R a+rX "$place"
  printf '%s\n' "$packages" >"$place/installed"
}

# What fails without it.
install_patroni() {
  install_environment "$PATRONI_PLACE" "$1" "$PATRONI"
}
