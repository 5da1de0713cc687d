//! Replication sessions (`replication=true|database`): logged in as any other, then relayed byte for byte: to the
//! leader, or, on the read-only port, to a replica.
//!
//! Invariant: what comes by the read-only port never reaches a member that leads, also where the configuration lets
//! reads fall back to it: nothing looks into these bytes, so nothing could enforce read-only there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use switchyard_core::causal::Bound;
use switchyard_core::refusal::Refusal;
use switchyard_core::route::{self, Ask, Excluded, ServerRole};
use switchyard_core::session::CancelKey;
use switchyard_core::topology::{Epoch, Member, Out, Role};
use switchyard_core::wire::reply;
use switchyard_core::wire::startup::{Replication, Startup};
use switchyard_health::Health;
use tokio::io::{AsyncWriteExt, copy_bidirectional};

use crate::auth::{self, ConnectError, Identity, Login, Target};
use crate::clients::Registered;
use crate::context::Context;
use crate::server::Server;
use crate::stats::Port;
use crate::stream::Stream;

/// Relays until one side closes, or a replica follows no more.
pub(crate) async fn relay(
    context: &Context,
    port: Port,
    startup: &Startup,
    identity: &Identity,
    slot: &Registered,
    key: CancelKey,
    mut stream: Stream,
) {
    let mut server = match connect(context, port, startup, identity).await {
        Ok(server) => server,
        Err(failure) => {
            let message = match failure {
                Failure::Server(raw) => raw,
                Failure::Refused(refusal) => encoded(&refusal),
                Failure::Elsewhere(node, error) => {
                    encoded(&Refusal::ServerUnreachable { node: node.to_string(), detail: error.to_string() })
                }
            };
            let _ = stream.write_all(&message).await;
            let _ = stream.shutdown().await;
            return;
        }
    };
    let mut greeting = Vec::new();
    for (name, value) in server.state.params.iter() {
        reply::parameter_status(&mut greeting, name, value);
    }
    reply::message(&mut greeting, b'K', &[&key.pid.to_be_bytes(), &key.secret]);
    reply::ready_for_query(&mut greeting, reply::TxStatus::Idle);
    if stream.write_all(&greeting).await.is_err() {
        return;
    }
    slot.hold(&server.handle);
    let handle = server.handle.clone();
    tokio::select! {
        _ = copy_bidirectional(&mut stream, &mut server.stream) => {}
        () = std::future::poll_fn(|cx| handle.poll_killed(cx)) => {}
        () = stops_following(&context.health, &server.state.node), if port == Port::ReadOnly => {}
    }
    slot.release();
}

fn encoded(refusal: &Refusal) -> Vec<u8> {
    let mut message = Vec::new();
    refusal.encode(&mut message);
    message
}

enum Failure {
    Refused(Refusal),
    Server(Vec<u8>),
    /// This member doesn't serve; another one may.
    Elsewhere(Arc<str>, ConnectError),
}

/// Where to go, and as what.
struct Node {
    name: Arc<str>,
    target: Target,
    role: ServerRole,
    epoch: Epoch,
}

impl Node {
    fn new(member: &Member, role: ServerRole, epoch: Epoch) -> Node {
        Node { name: member.name.clone(), target: Target::new(member.host.clone(), member.port), role, epoch }
    }
}

async fn connect(context: &Context, port: Port, startup: &Startup, identity: &Identity) -> Result<Server, Failure> {
    match port {
        Port::ReadWrite => {
            let leader = {
                let topology = context.health.topology.load();
                let leader = topology.leader_at(Instant::now());
                leader.map(|(leader, member)| Node::new(member, ServerRole::Leader, leader.epoch))
            };
            let leader = leader.ok_or(Failure::Refused(Refusal::NoLeader { waited: Duration::ZERO }))?;
            connect_to(context, leader, startup, identity).await.map_err(|failure| match failure {
                Failure::Elsewhere(_, ConnectError::Server { raw, .. }) => Failure::Server(raw),
                failure => failure,
            })
        }
        Port::ReadOnly => {
            let mut tried = Excluded::new();
            loop {
                let replica = {
                    let topology = context.health.topology.load();
                    let (config, random) = (context.config.load(), rand::random());
                    let zone = config.routing.zone.as_deref();
                    let ask = Ask { watermark: None, bound: Bound::Nothing, excluded: &tried, zone, random };
                    let member = route::replica(ask, &topology, &context.loads, Instant::now());
                    member.map(|member| Node::new(member, ServerRole::Replica, topology.epoch))
                };
                let replica = replica.map_err(|_| Failure::Refused(Refusal::NoReplicaToStreamFrom))?;
                let name = replica.name.clone();
                match connect_to(context, replica, startup, identity).await {
                    Ok(server) if server.in_hot_standby() == Some(false) => server.close(),
                    Err(Failure::Elsewhere(_, error)) => tracing::debug!(node = %name, %error, "no replication connection"),
                    answer => return answer,
                }
                tried.push(name);
            }
        }
    }
}

async fn connect_to(context: &Context, node: Node, startup: &Startup, identity: &Identity) -> Result<Server, Failure> {
    let config = context.config.load_full();
    let mut parameters = identity.settings.clone();
    let replication = if startup.replication == Replication::Logical { "database" } else { "true" };
    parameters.push(("replication".to_owned(), replication.to_owned()));
    if node.role == ServerRole::Replica {
        // Last, so that it counts: the same connection would take writes after a promotion.
        parameters.push(("default_transaction_read_only".to_owned(), "on".to_owned()));
    }
    let login = Login { user: &identity.user, database: &identity.database, credential: &identity.credential, parameters: &parameters };
    let (tls, name) = (context.pools.tls.load_full(), node.name);
    match auth::connect(&node.target, &login, &tls, config.postgres.connect_timeout).await {
        Ok(connected) => {
            // Nobody counts here what is under way.
            connected.stream.be_patient(true);
            Ok(Server::new(connected, node.target, name, node.role, node.epoch, 1))
        }
        // But for a server that starts or stops, its word is as good as another's.
        Err(ConnectError::Server { raw, sqlstate, .. }) if !sqlstate.starts_with("57P0") => Err(Failure::Server(raw)),
        Err(error) => Err(Failure::Elsewhere(name, error)),
    }
}

/// Ends when a replica's connection is to be given up: the member leads, or may, or isn't one any more.
async fn stops_following(health: &Health, node: &str) {
    let mut changed = health.changed();
    loop {
        // Seen before the look: a change behind it ends the wait.
        changed.borrow_and_update();
        {
            let topology = health.topology.load();
            let follows = |member: &Arc<Member>| {
                member.role != Role::Leader
                    && member.out != Some(Out::NotInRecovery)
                    && member.probed.as_ref().is_none_or(|p| p.in_recovery)
            };
            let leads = topology.leader.as_ref().and_then(|leader| topology.members.get(leader.member));
            if leads.is_some_and(|leader| *leader.name == *node) || !topology.member(node).is_some_and(follows) {
                return;
            }
        }
        if changed.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
