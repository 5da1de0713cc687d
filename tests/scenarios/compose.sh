#!/usr/bin/env bash
# Brings docker-compose.yml up for real, looks whether it does what it says, and takes it down again. Needs root, and some minutes.
#
#   tests/scenarios/compose.sh           with the ports of docker-compose.yml, which must be free
#   KEEP=1 tests/scenarios/compose.sh    leaves it running
#   SWITCHYARD_BIN=FILE ...              takes that router, and builds nothing
#
# What is missing is installed from Debian's packages: Docker Engine, docker-compose and debootstrap. Where no daemon answers, one is started for this
# run. Where no image registry answers, the base image is made of Debian's own packages, and Prometheus' of Debian's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD
target=${CARGO_TARGET_DIR:-target}
work=$(mktemp -d /tmp/switchyard-compose.XXXXXX)
daemon=
project=switchyard

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

finish() {
    status=$?
    rm -f "$root/.compose-more.yml"
    if [ $status != 0 ]; then
        compose ps 2>/dev/null || true
        compose logs --tail=15 2>/dev/null || true
    fi
    if [ -z "${KEEP:-}" ]; then
        compose down -v --remove-orphans >/dev/null 2>&1 || true
        if [ -n "$daemon" ]; then
            kill "$daemon" 2>/dev/null || true
            wait "$daemon" 2>/dev/null || true
        fi
        # The daemon may leave its network namespace mounted there.
        umount "$work"/exec/netns/* 2>/dev/null || true
        rm -rf "$work" || true
    fi
    [ $status = 0 ] && echo "compose: ok"
    exit $status
}
trap finish EXIT

[ "$(id -u)" = 0 ] || fail "Docker Engine needs root"
missing=()
command -v dockerd >/dev/null || missing+=(docker.io)
command -v docker-compose >/dev/null || docker compose version >/dev/null 2>&1 || missing+=(docker-compose)
command -v iptables >/dev/null || missing+=(iptables)
command -v psql >/dev/null || missing+=(postgresql-client)
command -v curl >/dev/null || missing+=(curl)
if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]}"
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
fi
compose() {
    if command -v docker-compose >/dev/null; then docker-compose -p $project "$@"; else docker compose -p $project "$@"; fi
}

if ! docker info >/dev/null 2>&1; then
    say "starting dockerd"
    export DOCKER_HOST=unix://$work/docker.sock
    # Kept between runs where there is a place for it: images take minutes to build.
    data=${SWITCHYARD_DOCKER_DATA:-$work/data}
    dockerd --data-root "$data" --exec-root "$work/exec" --pidfile "$work/pid" -H "$DOCKER_HOST" >"$work/dockerd.log" 2>&1 &
    daemon=$!
    for _ in $(seq 60); do
        docker info >/dev/null 2>&1 && break
        kill -0 $daemon 2>/dev/null || { tail -20 "$work/dockerd.log"; fail "dockerd ended"; }
        sleep 0.5
    done
    docker info >/dev/null || fail "dockerd doesn't answer"
fi

have_image() { docker image inspect "$1" >/dev/null 2>&1 || timeout 120 docker pull -q "$1" 2>/dev/null; }
if ! have_image debian:trixie-slim; then
    say "no registry answers: debian:trixie-slim by debootstrap"
    command -v debootstrap >/dev/null || { apt-get update -q >/dev/null; apt-get install -y -q --no-install-recommends debootstrap >/dev/null; }
    debootstrap --variant=minbase trixie "$work/trixie" >"$work/debootstrap.log" || { tail -5 "$work/debootstrap.log"; fail debootstrap; }
    tar -C "$work/trixie" -c . | docker import - debian:trixie-slim >/dev/null
    rm -rf "$work/trixie"
fi
if ! have_image prom/prometheus; then
    say "no registry answers: prom/prometheus of Debian's package"
    docker build -q --network host -t prom/prometheus - >/dev/null <<'DOCKERFILE'
FROM debian:trixie-slim
RUN apt-get update && apt-get install -y --no-install-recommends prometheus && rm -rf /var/lib/apt/lists/*
USER prometheus
WORKDIR /var/lib/prometheus
ENTRYPOINT ["prometheus"]
DOCKERFILE
fi

say "building the images"
if [ -z "${SWITCHYARD_BIN:-}" ]; then
    cargo build --locked --release --bin switchyard
    cargo build --locked --bin failover
    SWITCHYARD_BIN=$target/release/switchyard
fi
docker build -q --network host -t switchyard-patroni patroni >/dev/null
mkdir -p "$work/router/target/release"
cp proxy/Dockerfile "$work/router/"
cp "$SWITCHYARD_BIN" "$work/router/target/release/switchyard"
docker build -q --network host -t switchyard "$work/router" >/dev/null

say "docker-compose up"
began=$SECONDS
compose up -d --no-build >"$work/up.log" 2>&1 || { tail -20 "$work/up.log"; fail "docker-compose up"; }
eventually() { # eventually SECONDS WHAT COMMAND...
    local until=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >"$work/last" 2>&1; do
        [ $SECONDS -lt $until ] || { cat "$work/last"; fail "$what"; }
        sleep 0.3
    done
}
state() { curl -fsS "http://127.0.0.1:${1:-18080}/api/v1/cluster"; }
serving() { state "${2:-18080}" | python3 -c "import json,sys; c=json.load(sys.stdin)['cluster']; sys.exit(not (c['state'] == 'stable' and c['replicas_serving'] == $1))"; }
leader() { state | python3 -c "import json,sys; print(json.load(sys.stdin)['cluster']['leader'] or '')"; }
eventually 180 "router1 serves a leader and four replicas" serving 4
eventually 30 "router2 does, too" serving 4 18081
echo "up after $((SECONDS - began)) s, $(leader) leads"
healthy() { for service in patroni1 patroni2 postgres-read1 postgres-read2 postgres-read3 router1 router2; do
    [ "$(docker inspect -f '{{.State.Health.Status}}' "$(compose ps -q $service)")" = healthy ] || { echo "$service isn't healthy"; return 1; }
done; }
eventually 60 "every container is healthy" healthy

export PGPASSWORD=postgres PGCONNECT_TIMEOUT=5
say "the seed"
psql -qX -v ON_ERROR_STOP=1 -h localhost -p 15000 -U postgres -c "CREATE TABLE test (id SERIAL, message TEXT); INSERT INTO test (message) VALUES ('Hello CQRS');"
seen() { [ "$(psql -XAtc "SELECT message FROM test" -h localhost -p "$1" -U postgres)" = 'Hello CQRS' ]; }
for port in 15000 15001 15010 15011; do eventually 10 "the row on port $port" seen $port; done
refused=$(psql -X -h localhost -p 15001 -U postgres -v VERBOSITY=sqlstate -c "INSERT INTO test (message) VALUES ('Should fail')" 2>&1 || true)
case $refused in *25006*) ;; *) fail "a write on port 15001: $refused" ;; esac
for port in 5432 5433 5440 5441 5442; do psql -qXAtc "SELECT 1" -h localhost -p $port -U postgres >/dev/null || fail "direct access on $port"; done
for port in 8008 8009; do curl -fsS "http://127.0.0.1:$port/patroni" >/dev/null || fail "Patroni's REST API on $port"; done
scraped() { curl -fsS 'http://127.0.0.1:9090/api/v1/query?query=sum(up%7Bjob="switchyard"%7D)' | grep -q '"2"'; }
eventually 60 "Prometheus scrapes both routers" scraped

dsn="host=localhost,localhost port=15000,15010 user=postgres password=postgres dbname=postgres"
reads="host=localhost,localhost port=15001,15011 user=postgres password=postgres dbname=postgres"
watch() { # watch COMMAND...: prints what clients saw of it
    "$target/debug/failover" --write "$dsn" --read "$reads" --writers 32 --readers 32 --pace-ms 25 --before 3 --after 10 -- "$@" | tee "$work/watch"
}
cat >"$work/switchover" <<SCRIPT
#!/bin/sh
exec docker exec $(compose ps -q router1) switchyard switchover >"$work/switched" 2>&1
SCRIPT
chmod +x "$work/switchover"
nothing_lost() { grep -q 'acknowledged writes lost   0' "$work/watch" && grep -q 'there twice   0' "$work/watch"; }

for round in $(seq "${SWITCHOVERS:-3}"); do
    first=$(leader)
    say "switchyard switchover, with writers and readers ($round)"
    watch "$work/switchover" || true
    grep -q 'leads, on timeline' "$work/switched" || { cat "$work/switched"; fail "no switchover"; }
    nothing_lost || fail "writes were lost or doubled"
    grep -q "writers' errors   0" "$work/watch" && grep -q "readers' errors   0" "$work/watch" || fail "clients got errors"
    eventually 60 "all serve again" serving 4
    [ "$(leader)" != "$first" ] || fail "$first still leads"
done
second=$(leader)

say "docker kill $second, with writers and readers"
watch docker kill "$(compose ps -q "$second")" || true
# Replication is asynchronous here, so what no replica had received is the cluster's loss.
grep -q 'there twice   0' "$work/watch" || fail "writes were doubled"
grep -q "readers' errors   0" "$work/watch" || fail "readers got errors"
eventually 60 "another one leads" serving 3
[ "$(leader)" != "$second" ] || fail "$second still leads"
docker start "$(compose ps -q "$second")" >/dev/null
eventually 120 "the killed member follows" serving 4
second=$(leader)

say "docker stop $second, with writers and readers"
watch docker stop "$(compose ps -q "$second")" || true
nothing_lost || fail "writes were lost or doubled"
grep -q "readers' errors   0" "$work/watch" || fail "readers got errors"
eventually 60 "another one leads" serving 3
[ "$(leader)" != "$second" ] || fail "$second still leads"
docker start "$(compose ps -q "$second")" >/dev/null
eventually 120 "the stopped member follows" serving 4

say "docker pause of a read member, with writers and readers"
watch sh -c "docker pause $(compose ps -q postgres-read1) >/dev/null; sleep 8; docker unpause $(compose ps -q postgres-read1) >/dev/null" || true
nothing_lost || fail "writes were lost or doubled"
eventually 60 "it serves again" serving 4

say "another read member: a copied block"
python3 - >"$work/more.yml" <<'PYTHON'
import re
text = open("docker-compose.yml").read()
block = re.search(r"(?m)^  postgres-read3:\n(?:    .*\n)+", text).group(0)
block = block.replace("postgres-read3", "postgres-read4").replace("5442:", "5443:")
print(text.replace("\n  router1:\n", "\n" + block + "\n  router1:\n", 1), end="")
PYTHON
cp "$work/more.yml" "$root/.compose-more.yml"
compose -f .compose-more.yml up -d --no-build postgres-read4 >"$work/up.log" 2>&1 || { tail -20 "$work/up.log"; fail "scaling"; }
eventually 120 "five replicas serve" serving 5
eventually 30 "for router2, too" serving 5 18081
docker rm -f "$(compose -f .compose-more.yml ps -q postgres-read4)" >/dev/null
