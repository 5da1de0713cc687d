#!/usr/bin/env bash
# Installs what the demo, the tests or the benchmark need and this machine lacks, and nothing else. Debian 12 and 13.
#
#   scripts/install.sh [build|demo|test|regress|bench]
#
#   build   protoc and a C linker, which some crates are built with
#   demo    and PostgreSQL, etcd, and Patroni in a virtual environment of its own
#   test    and Chromium, in which the stats page is opened, and clients in Python, Node.js and Java
#   regress what the demo needs, and what fetches and compiles PostgreSQL's regression suite
#   bench   and HAProxy and PgBouncer, to be measured against
#
# Debian's packages need root: an ordinary user is asked by sudo, once, and only if something is missing. Patroni comes from PyPI into
# /var/lib/switchyard/venv for root (PostgreSQL refuses to run as root, so user postgres must be able to execute it), into .venv of the
# checkout for anybody else. The tests' clients that Debian has not, or too old ones of, come from PyPI and npm into
# /var/lib/switchyard/clients or .clients. When all is there, this script changes nothing and asks no network.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
goal=${1:-demo}
case $goal in build | demo | test | regress | bench) ;; *)
    echo "usage: scripts/install.sh [build|demo|test|regress|bench]" >&2
    exit 64
    ;;
esac
at_least() { # whether the goal includes the one named
    case "$1:$goal" in build:* | demo:demo | demo:test | demo:regress | demo:bench | test:test | regress:regress | bench:bench) return 0 ;; *) return 1 ;; esac
}
have() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }
exists() { [ -e "$1" ]; } # exists GLOB...: whether the first match is there

if ! have cargo && [ ! -x "${HOME:-/root}/.cargo/bin/cargo" ]; then
    echo "Rust is missing: install rustup or Debian's cargo, then try again." >&2
    exit 69
fi

missing=()
have protoc || missing+=(protobuf-compiler)
# The types that protoc comes with are a package of their own on Debian 13.
exists /usr/include/google/protobuf/descriptor.proto || exists /usr/local/include/google/protobuf/descriptor.proto || missing+=(libprotobuf-dev)
have cc || missing+=(gcc libc6-dev)
exists /etc/ssl/certs/ca-certificates.crt || missing+=(ca-certificates)
if at_least demo; then
    # The version is the distribution's: 15 on Debian 12, 17 on Debian 13.
    exists /usr/lib/postgresql/*/bin/pg_rewind && have psql || missing+=(postgresql)
    exists /usr/share/postgresql/*/extension/pg_stat_statements.control || missing+=(postgresql-contrib)
    have etcd || missing+=(etcd-server)
    have etcdctl || missing+=(etcd-client)
    # Debian's own python3: another one, first in PATH, may live where user postgres may not go.
    [ -x /usr/bin/python3 ] && /usr/bin/python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
fi
if at_least test; then
    have chromium || missing+=(chromium)
    have node || missing+=(nodejs)
    have npm || missing+=(npm)
    have javac || missing+=(default-jdk-headless)
    exists /usr/share/java/postgresql.jar || missing+=(libpostgresql-jdbc-java)
fi
if at_least regress; then
    have curl || missing+=(curl)
    have xz || missing+=(xz-utils)
    have bzip2 || missing+=(bzip2)
    have diff || missing+=(diffutils)
    major=$(ls /usr/lib/postgresql 2>/dev/null | sort -n | tail -1)
    exists /usr/include/postgresql/*/server/postgres.h || missing+=("postgresql-server-dev-${major:-all}")
fi
if at_least bench; then
    have haproxy || missing+=(haproxy)
    have pgbouncer || missing+=(pgbouncer)
fi

if [ ${#missing[@]} -gt 0 ]; then
    if ! have apt-get; then
        echo "Missing: ${missing[*]} (Debian's names). There is no apt-get here: please install them, then try again." >&2
        exit 69
    fi
    as_root=()
    if [ "$(id -u)" != 0 ]; then
        if ! have sudo; then
            echo "Missing: ${missing[*]}. There is no sudo: please let root run  apt-get install ${missing[*]}  and try again." >&2
            exit 77
        fi
        as_root=(sudo)
    fi
    echo "Installing ${missing[*]}"
    "${as_root[@]}" apt-get update -q
    # Packages may start services on the usual ports; that does no harm, as the demo and the tests pick free ones.
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
fi

at_least demo || exit 0

if [ "$(id -u)" = 0 ]; then
    venv=/var/lib/switchyard/venv
else
    venv=$root/.venv
fi
# The stamp holds the requirements that the environment was made from: a change of either makes it anew.
current() { cmp -s "$root/scripts/requirements.txt" "$venv/requirements.stamp" && [ -x "$venv/bin/patroni" ]; }
if ! current; then
    umask 022
    mkdir -p "$(dirname "$venv")"
    exec 9>"$venv.lock"
    flock 9 # another checkout may be at it
    if ! current; then
        echo "Installing Patroni into $venv"
        rm -rf "$venv"
        /usr/bin/python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check --use-pep517 -r "$root/scripts/requirements.txt"
        "$venv/bin/patroni" --version
        cp "$root/scripts/requirements.txt" "$venv/requirements.stamp"
    fi
fi

at_least test || exit 0

if [ "$(id -u)" = 0 ]; then
    clients=/var/lib/switchyard/clients
else
    clients=$root/.clients
fi
wanted() { cat "$root/tests/clients/requirements.txt" "$root/tests/clients/node/package-lock.json"; }
complete() { wanted | cmp -s - "$clients/stamp" && [ -x "$clients/venv/bin/python" ] && [ -d "$clients/node_modules/pg" ]; }
if ! complete; then
    umask 022
    mkdir -p "$(dirname "$clients")"
    exec 8>"$clients.lock"
    flock 8
    if ! complete; then
        echo "Installing clients into $clients"
        rm -rf "$clients"
        mkdir -p "$clients"
        /usr/bin/python3 -m venv "$clients/venv"
        "$clients/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: -r "$root/tests/clients/requirements.txt"
        cp "$root/tests/clients/node/package.json" "$root/tests/clients/node/package-lock.json" "$clients"
        (cd "$clients" && npm ci --silent --ignore-scripts --no-audit --no-fund)
        wanted >"$clients/stamp"
    fi
fi
