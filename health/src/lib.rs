//! The router's view of the cluster: etcd, Patroni and SQL probes, folded into [`Topology`](switchyard_core::topology::Topology) snapshots.
