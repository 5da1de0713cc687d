#!/usr/bin/env bash
# What clients see of the usual mishaps through Switchyard and through HAProxy, on a cluster on this machine that is started for it: about 20 minutes.
#
#   tests/scenarios/failover.sh [--only NAME] [--alone] [--times N] [--writers N] [--readers N] [--pace-ms MS] [--etcd-down S] [--svg DIR]
# --only takes a scenario's whole name, or its beginning with a `*` behind it, such as 'etcd down*'; --help lists them.
#
# Against a cluster of your own, run the tool below it: cargo run --bin failover -- --help, with `docker stop patroni1`, `docker pause` and
# the like as its command. Expect of Switchyard: no error at all in a switchover by `switchyard switchover`; 40001 for transactions at most in
# one by patronictl; after kill -9 of the leader only 40001 and 08007, for what was in flight; none when a replica dies. Never a lost or doubled write.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scripts/install.sh bench
cargo build --locked --bin switchyard --bin scenarios
exec "${CARGO_TARGET_DIR:-target}/debug/scenarios" "$@"
