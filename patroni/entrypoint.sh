#!/bin/sh
# A member of the compose cluster, from its environment: NAME, SCOPE, ETCD, TAGS (JSON, may be empty).
set -eu
: "${NAME:?}" "${SCOPE:?}" "${ETCD:?}" "${POSTGRES_PASSWORD:?}" "${REPLICATION_PASSWORD:?}" "${SWITCHYARD_PASSWORD:?}"
TAGS=${TAGS:-}
[ -n "$TAGS" ] || TAGS='{}'

# Patroni runs this once, on the first leader, with a connection string as its last argument.
cat > /tmp/roles.sh <<'SH'
#!/bin/sh
exec psql -v ON_ERROR_STOP=1 -v password="$SWITCHYARD_PASSWORD" "$1" <<'SQL'
CREATE ROLE switchyard SUPERUSER LOGIN PASSWORD :'password';
SQL
SH
chmod +x /tmp/roles.sh

cat > /tmp/patroni.yml <<YAML
scope: $SCOPE
name: $NAME
etcd3:
  hosts: $ETCD
restapi:
  listen: 0.0.0.0:8008
  connect_address: $NAME:8008
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 5
    retry_timeout: 5
    maximum_lag_on_failover: 1048576
    postgresql:
      use_pg_rewind: true
      use_slots: true
      parameters:
        wal_level: replica
        hot_standby: "on"
        max_connections: 200
        wal_log_hints: "on"
        password_encryption: scram-sha-256
  initdb:
    - encoding: UTF8
    - locale: C.UTF-8
    - data-checksums
  post_bootstrap: /tmp/roles.sh
postgresql:
  listen: 0.0.0.0:5432
  connect_address: $NAME:5432
  data_dir: /data/$NAME
  bin_dir: /usr/lib/postgresql/17/bin
  authentication:
    superuser: {username: postgres, password: "$POSTGRES_PASSWORD"}
    replication: {username: replicator, password: "$REPLICATION_PASSWORD"}
    rewind: {username: rewind, password: "$REPLICATION_PASSWORD"}
  pg_hba:
    - local all all trust
    - host replication replicator all scram-sha-256
    - host all all all scram-sha-256
tags: $TAGS
YAML
exec patroni /tmp/patroni.yml
