//! Replication sessions (`replication=true|database`): logged in as any other, then relayed byte for byte, to the leader.

use std::time::Instant;

use switchyard_core::refusal::Refusal;
use switchyard_core::route::ServerRole;
use switchyard_core::session::CancelKey;
use switchyard_core::wire::reply;
use switchyard_core::wire::startup::{Replication, Startup};
use tokio::io::{AsyncWriteExt, copy_bidirectional};

use crate::auth::{self, ConnectError, Identity, Login, Target};
use crate::clients::Registered;
use crate::context::Context;
use crate::server::Server;
use crate::stream::Stream;

/// Relays until one side closes.
pub(crate) async fn relay(
    context: &Context,
    startup: &Startup,
    identity: &Identity,
    slot: &Registered,
    key: CancelKey,
    mut stream: Stream,
) {
    let mut server = match connect(context, startup, identity).await {
        Ok(server) => server,
        Err(Failure::Refused(refusal)) => {
            let mut message = Vec::new();
            refusal.encode(&mut message);
            let _ = stream.write_all(&message).await;
            let _ = stream.shutdown().await;
            return;
        }
        Err(Failure::Server(raw)) => {
            let _ = stream.write_all(&raw).await;
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
    }
    slot.release();
}

enum Failure {
    Refused(Refusal),
    Server(Vec<u8>),
}

async fn connect(context: &Context, startup: &Startup, identity: &Identity) -> Result<Server, Failure> {
    let config = context.config.load_full();
    let (target, epoch, node) = {
        let topology = context.health.topology.load();
        let (leader, member) =
            topology.leader_at(Instant::now()).ok_or(Failure::Refused(Refusal::NoLeader { waited: std::time::Duration::ZERO }))?;
        (Target::new(member.host.clone(), member.port), leader.epoch, member.name.clone())
    };
    let mut parameters = identity.settings.clone();
    let replication = if startup.replication == Replication::Logical { "database" } else { "true" };
    parameters.push(("replication".to_owned(), replication.to_owned()));
    let login = Login { user: &identity.user, database: &identity.database, credential: &identity.credential, parameters: &parameters };
    let tls = context.pools.tls.load_full();
    match auth::connect(&target, &login, &tls, config.postgres.connect_timeout).await {
        Ok(connected) => {
            // Nobody counts here what is under way.
            connected.stream.be_patient(true);
            Ok(Server::new(connected, target, node, ServerRole::Leader, epoch, 1))
        }
        Err(ConnectError::Server { raw, .. }) => Err(Failure::Server(raw)),
        Err(error) => Err(Failure::Refused(Refusal::ServerUnreachable { node: node.to_string(), detail: error.to_string() })),
    }
}
