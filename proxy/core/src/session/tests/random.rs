//! Random scripts of clients that share a small pool: each gets what a direct connection gives, whatever the pieces in which bytes come.
//! Where servers are lost, every message is still answered once.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::RngSeed;

use super::super::{Access, CancelKey, CustomNames, Params, ServerState, Session, Settings, TxStatus, Want, Work};
use super::rig::Rig;
use super::{model, text};
use crate::route::ServerRole;
use crate::session::Value;
use crate::session::server::server_name;

/// A server connection, and what the router believes of it.
struct Server {
    state: ServerState,
    model: model::Server,
    /// Answers that the router hasn't read yet.
    answers: Vec<u8>,
    /// Answers that it keeps to itself until a Flush or Sync.
    unflushed: Vec<u8>,
}

struct Client {
    session: Session,
    work: Work,
    /// What it has sent and the router hasn't read.
    unread: Vec<u8>,
    held: Option<Server>,
    got: Vec<u8>,
    closed: bool,
    /// It closes its sending half behind what it has sent.
    hangs_up: bool,
    direct: model::Server,
    direct_got: Vec<u8>,
}

struct World {
    rig: Rig,
    pool: Vec<Server>,
    /// Sizes of pieces, drawn one after the other.
    pieces: Vec<usize>,
    piece: usize,
    max_prepared: usize,
    leased: usize,
    given_back: usize,
}

impl World {
    fn new(access: Access, pieces: Vec<usize>, max_prepared: usize) -> World {
        World { rig: Rig::new(access), pool: Vec::new(), pieces, piece: 0, max_prepared, leased: 0, given_back: 0 }
    }

    fn piece(&mut self) -> usize {
        self.piece += 1;
        self.pieces[self.piece % self.pieces.len()].max(1)
    }

    fn client(&mut self, startup: &[(&str, &str)]) -> Client {
        let settings = Settings::from_startup(startup.iter().map(|(name, value)| (*name, value.as_bytes())));
        let mut client = Client {
            session: Session::new(settings, CancelKey { pid: 1, secret: [1; 4].into() }),
            work: Work::default(),
            unread: Vec::new(),
            held: None,
            got: Vec::new(),
            closed: false,
            hangs_up: false,
            direct: model::Server::new(self.rig.policy.access == Access::ReadOnly, startup),
            direct_got: Vec::new(),
        };
        client.session.returned(&self.rig.env(), &mut client.work);
        self.pump(&mut client);
        assert!(client.got.ends_with(&text::server("Z I")));
        client.got.clear();
        client
    }

    /// `known`: the custom settings that the session may find to have been set.
    fn take(&mut self, node: &str, role: ServerRole, known: Option<&CustomNames>) -> Server {
        self.leased += 1;
        let fits = |server: &Server| {
            &*server.state.node == node && server.state.role == role && known.is_none_or(|known| server.state.custom.are_among(known))
        };
        if let Some(at) = self.pool.iter().position(fits) {
            return self.pool.swap_remove(at);
        }
        let mut params = Params::default();
        params.set(b"DateStyle", b"none");
        let state = ServerState::new(node.into(), role, self.rig.topology.epoch, params, self.max_prepared);
        Server { state, model: model::Server::new(role == ServerRole::Replica, &[]), answers: Vec::new(), unflushed: Vec::new() }
    }

    fn give_back(&mut self, mut server: Server) {
        self.given_back += 1;
        if server.state.tainted || server.state.tx != TxStatus::Idle {
            return;
        }
        assert!(server.state.ready && server.answers.is_empty(), "given back, and owes");
        assert!(server.model.is_clean(), "given back in the middle: {:?}", server.model);
        let mut ids: Vec<String> = server.state.prepared().ids().map(|id| String::from_utf8_lossy(&server_name(id)).into_owned()).collect();
        ids.sort();
        let there: Vec<String> = server.model.prepared.keys().filter(|name| !name.is_empty()).cloned().collect();
        assert_eq!(ids, there, "prepared statements");
        let mut expected = model::Server::new(false, &[]);
        let mut sync = Vec::new();
        Settings::default().sync_messages(&server.state.settings, ServerRole::Leader, &mut sync);
        expected.receive(&sync);
        // A custom setting that has none any more is '' for ever, whether it was set to that or not.
        let values = |model: &model::Server| {
            let mut values = model.values.clone();
            values.retain(|_, value| !value.is_empty());
            values
        };
        assert_eq!(values(&expected), values(&server.model), "settings");
        self.pool.push(server);
    }

    fn satisfy(&mut self, client: &mut Client) -> bool {
        let mut moved = false;
        while let Some(want) = client.session.take_want(Some(&client.work)) {
            moved = true;
            match want {
                Want::Lease(need) => {
                    assert!(client.held.is_none(), "leases one at a time");
                    let known = client.session.known_custom_settings(&self.rig.policy, &client.work);
                    let mut server = self.take(&need.node, need.role, known.as_ref());
                    let member = self.rig.topology.member(&need.node).expect("a member").clone();
                    client.session.granted(&self.rig.env(), &mut client.work, &mut server.state, member);
                    client.held = Some(server);
                }
                // Another client's write may be under way, and will be until that goes on.
                Want::Sample => {
                    self.rig.now += Duration::from_secs(2);
                    client.session.decide_again(&self.rig.env(), &mut client.work);
                }
                Want::Hold => client.session.denied(&mut client.work, &crate::refusal::Refusal::NoReplica),
                Want::Departure(_) => client.session.departure(&self.rig.env(), &mut client.work, true),
                Want::Return => {
                    if let Some(mut server) = client.held.take() {
                        client.session.let_go(Some(&mut client.work), &mut server.state);
                        self.give_back(server);
                    }
                    client.session.returned(&self.rig.env(), &mut client.work);
                }
                Want::Close | Want::Leave => {
                    client.closed = true;
                    client.held = None;
                    return moved;
                }
            }
        }
        moved
    }

    /// One thing that can happen, happens. False where nothing can.
    fn step(&mut self, client: &mut Client) -> bool {
        let moved = self.satisfy(client);
        client.got.append(&mut client.work.to_client);
        if client.closed {
            return false;
        }
        // The client may have sent more before the server has answered.
        let hurries = !client.unread.is_empty() && self.piece().is_multiple_of(3);
        if hurries {
            return self.reads(client) || moved;
        }
        if let Some(server) = &mut client.held {
            if !client.work.to_server.is_empty() {
                let answers = server.model.receive_in(&std::mem::take(&mut client.work.to_server), &mut server.unflushed);
                server.answers.extend(answers);
                return true;
            }
            if !server.answers.is_empty() {
                let size = self.piece();
                let server = client.held.as_mut().expect("held above");
                let part = server.answers.len().min(size);
                client.work.server_in.extend(server.answers.drain(..part));
                client.session.server_bytes(&self.rig.env(), &mut client.work, &mut server.state).expect("the model speaks the protocol");
                return true;
            }
        } else {
            assert!(client.work.to_server.is_empty(), "bytes for nobody");
        }
        self.reads(client) || moved
    }

    /// What the client has sent is read in part. Whether that has led to anything.
    fn reads(&mut self, client: &mut Client) -> bool {
        let part = client.unread.len().min(self.piece());
        client.work.client_in.extend(client.unread.drain(..part));
        if client.hangs_up && client.unread.is_empty() {
            client.session.client_ended();
        }
        let before = client.work.client_in.len();
        let server = client.held.as_mut().map(|server| &mut server.state);
        client.session.client_bytes(&self.rig.env(), &mut client.work, server);
        // What was taken before may be sent only now.
        part > 0 || client.work.client_in.len() < before || !client.work.to_server.is_empty() || client.session.wants()
    }

    fn pump(&mut self, client: &mut Client) {
        for _ in 0..100_000 {
            if !self.step(client) {
                return;
            }
        }
        panic!("goes on for ever");
    }

    fn lose(&mut self, client: &mut Client) {
        if let Some(server) = client.held.take() {
            self.given_back += 1;
            let costs_nothing = client.session.would_run_again(&self.rig.env(), &client.work, &server.state.node);
            let told = client.work.to_client.len();
            client.session.server_lost(&self.rig.env(), &mut client.work, &server.state, false);
            let goes_on = matches!(client.session.want, Some(Want::Lease(_) | Want::Hold | Want::Sample | Want::Departure(_)));
            let told = String::from_utf8_lossy(&client.work.to_client[told..]);
            // Of a transaction that may have shown more than any other replica does by now, that is told.
            let stays_behind = told.contains("C57P03") && self.rig.policy.access == Access::ReadOnly && client.session.lost.is_some();
            assert!(!costs_nothing || stays_behind || (goes_on && told.is_empty()), "told {told:?}, or waits for ever");
        }
    }
}

/// A read of an unlogged table, of which the router doesn't know.
const UNLOGGED: &str = "Q select unlogged";

/// What a replica can't read isn't asked again in a transaction with a segment that the client hasn't synced (`open`): what follows that, such as a SET,
/// stays where the segment runs, and the transaction with it.
fn is_left_out(op: &str, open: &mut bool) -> bool {
    if op == UNLOGGED && *open {
        return true;
    }
    let ends = ["commit", "rollback"].iter().any(|word| op.contains(word));
    *open = op.ends_with(" / H") || (*open && !ends);
    false
}

/// Statements that a prepared statement may be, too.
const PLAIN: &[&str] = &[
    "select 1",
    "select 2",
    "select fail",
    "insert into t",
    "selekt",
    "show work_mem",
    "begin",
    "commit",
    "rollback",
    "set datestyle = 'dmy'",
    "set work_mem = '1MB'",
    "set app.x = 'y'",
    "set work_mem = 'bad'",
    "set local work_mem = '2MB'",
    "copy t to stdout",
    "",
];

const SIMPLE: &[&str] = &[
    "select 1; select 2",
    "set work_mem = '3MB'; select fail",
    "begin; insert into t",
    "set datestyle = 'ymd'; select 1; insert into t",
    "insert into t; commit",
    "select unlogged",
    "savepoint a",
    "rollback to a",
    "commit and chain",
    "rollback and chain",
    "reset datestyle",
    "reset work_mem",
    "reset all",
    "discard all",
    "deallocate a",
    "deallocate all",
    "start transaction",
    "begin",
    "begin read only",
    "select 3",
    "insert into t",
];

/// What decides of what stands around it. (Not DISCARD ALL: what it goes back to, a new server connection would begin with.)
const CONTROL: &[&str] =
    &["savepoint a", "rollback to a", "commit and chain", "rollback and chain", "reset work_mem", "deallocate a", "deallocate all"];

/// What a client sends in one go. All of it ends with ReadyForQuery.
fn ended() -> impl Strategy<Value = String> {
    let name = || select(vec!["a", "b", "-"]);
    prop_oneof![
        4 => select(PLAIN).prop_map(|sql| format!("Q {sql}")),
        4 => select(SIMPLE).prop_map(|sql| format!("Q {sql}")),
        3 => (name(), select(PLAIN)).prop_map(|(name, sql)| format!("P {name} {sql} / S")),
        3 => select(PLAIN).prop_map(|sql| format!("P - {sql} / B - - / D P - / E - / S")),
        4 => name().prop_map(|name| format!("B - {name} / E - / S")),
        2 => name().prop_map(|name| format!("D S {name} / B p {name} / E p / C P p / S")),
        2 => (name(), select(PLAIN)).prop_map(|(name, sql)| format!("C S {name} / P {name} {sql} / B - {name} / E - / S")),
        2 => (name(), name()).prop_map(|(one, other)| format!("B - {one} / E - / B - {other} / E - / S")),
        1 => name().prop_map(|name| format!("C S {name} / S")),
        1 => Just("S".to_owned()),
    ]
}

/// Somebody else's DDL passes: what was prepared before is looked at again. Nobody sends it.
const DDL: &str = "ddl";

/// All that may come: also COPY, Flush without Sync, what makes no sense, and DDL.
fn happens() -> impl Strategy<Value = String> {
    prop_oneof![15 => anything(), 1 => Just(DDL.to_owned())]
}

/// What ends with a ReadyForQuery, and DDL.
fn answered() -> impl Strategy<Value = String> {
    prop_oneof![15 => ended(), 1 => Just(DDL.to_owned())]
}

/// All that a client may send: also COPY, Flush without Sync, and what makes no sense.
fn anything() -> impl Strategy<Value = String> {
    let name = || select(vec!["a", "b", "-"]);
    prop_oneof![
        8 => ended(),
        1 => Just("Q copy t from stdin / d row / c".to_owned()),
        1 => Just("Q copy t from stdin / d row / f no".to_owned()),
        1 => Just("Q copy t from stdin / d row / Q select 1".to_owned()),
        1 => Just("P - copy t from stdin / B - - / E - / S / d row / c / S".to_owned()),
        1 => Just("P - copy t from stdin / B - - / E - / H / d row / f no / S".to_owned()),
        1 => select(vec!["P - insert into t / B - - / E - / H", "P - select 1 / B - - / E - / H", "P - select fail / B - - / E - / H"]).prop_map(str::to_owned),
        1 => name().prop_map(|name| format!("P {name} select 1 / D S {name} / H")),
        1 => name().prop_map(|name| format!("B - {name} / H")),
        6 => free(),
        1 => select(vec!["d stray", "c", "f stray", "H", "E -", "B - nosuch", "D P nosuch / H"]).prop_map(str::to_owned),
    ]
}

/// Messages of the extended protocol in any order, as one segment or as the beginning of one.
fn free() -> impl Strategy<Value = String> {
    let name = || select(vec!["a", "b", "-"]);
    let sql = || prop_oneof![select(PLAIN), select(CONTROL)];
    let portal = || select(vec!["p", "-"]);
    let message = prop_oneof![
        4 => (name(), sql()).prop_map(|(name, sql)| format!("P {name} {sql}")),
        2 => (portal(), name()).prop_map(|(portal, name)| format!("B {portal} {name}")),
        2 => (portal(), name(), sql()).prop_map(|(portal, name, sql)| format!("P {name} {sql} / B {portal} {name} / E {portal}")),
        2 => portal().prop_map(|portal| format!("E {portal}")),
        1 => name().prop_map(|name| format!("D S {name}")),
        1 => portal().prop_map(|portal| format!("D P {portal}")),
        1 => name().prop_map(|name| format!("C S {name}")),
        1 => portal().prop_map(|portal| format!("C P {portal}")),
        1 => Just("H".to_owned()),
    ];
    let end = select(vec!["S", "H / S", "H"]);
    (prop::collection::vec(message, 1..8), end).prop_map(|(messages, end)| format!("{} / {end}", messages.join(" / ")))
}

fn encode(op: &str) -> Vec<u8> {
    op.split(" / ").flat_map(text::client).collect()
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![Just(vec![100_000]), prop::collection::vec(1..40usize, 1..20)]
}

/// `together`: how many are sent before the answers are waited for.
fn run(access: Access, ops: &[(usize, bool, String)], pieces: Vec<usize>, max_prepared: usize) {
    let mut world = World::new(access, pieces, max_prepared);
    let mut clients = [world.client(&[("datestyle", "start")]), world.client(&[])];
    let mut open = [false; 2];
    for (who, wait, op) in ops {
        if op == DDL {
            let shape = &world.rig.judge.shape;
            shape.set(shape.get() + 1);
            continue;
        }
        let client = &mut clients[*who];
        if is_left_out(op, &mut open[*who]) {
            continue;
        }
        client.unread.extend(encode(op));
        let answers = client.direct.receive(&encode(op));
        client.direct_got.extend(answers);
        if *wait {
            world.pump(client);
            world.rig.catch_up();
            same(client);
        }
    }
    for client in &mut clients {
        world.pump(client);
        same(client);
        assert!(!client.closed);
        assert!(client.unread.is_empty() && client.work.client_in.is_empty(), "goes on with nothing that it was sent");
    }
    let held = clients.iter().filter(|client| client.held.is_some()).count();
    assert_eq!(world.leased, world.given_back + held, "every lease is given back once");
}

/// What the router gave is what a direct connection gave. Empty where a batch isn't complete: its answers may come later.
fn same(client: &Client) {
    let (mut got, mut direct) = (text::to_client(&client.got), text::to_client(&client.direct_got));
    // A pipeline behind an error in a failed transaction: either says no, each for another reason.
    for message in got.iter_mut().chain(&mut direct).filter(|message| *message == "E 26000") {
        "E 25P02".clone_into(message);
    }
    // A server answers at once and the router when it has seen all of the batch: so only what both have said counts.
    let both = got.len().min(direct.len());
    if client.session.status() == TxStatus::Idle && client.work.is_spare() {
        assert_eq!(got, direct, "router and direct connection");
    }
    got.truncate(both);
    direct.truncate(both);
    assert_eq!(got, direct, "router and direct connection, as far as both have answered");
}

/// A client that sends all at once and says goodbye behind it: all of it is answered before the session ends. A COPY
/// whose data hasn't ended comes to nothing.
fn run_to_goodbye(access: Access, ops: &[String], pieces: Vec<usize>, terminates: bool) {
    let mut world = World::new(access, pieces, 2);
    let mut client = world.client(&[]);
    let mut open = false;
    for op in ops.iter().filter(|op| *op != DDL) {
        if is_left_out(op, &mut open) {
            continue;
        }
        client.unread.extend(encode(op));
        let answers = client.direct.receive(&encode(op));
        client.direct_got.extend(answers);
    }
    if terminates {
        client.unread.extend(encode("X"));
    } else {
        client.hangs_up = true;
    }
    world.pump(&mut client);
    assert!(client.closed, "the session never ends: {:?}, {:?}", client.work, client.session);
    if client.direct.is_copying() {
        return;
    }
    let (mut got, mut direct) = (text::to_client(&client.got), text::to_client(&client.direct_got));
    for message in got.iter_mut().chain(&mut direct).filter(|message| *message == "E 26000") {
        "E 25P02".clone_into(message);
    }
    assert_eq!(got, direct, "router and direct connection");
}

/// Where servers are lost: one ReadyForQuery for each Query and Sync, or the end of the session, and nothing that was never asked for.
fn run_with_losses(access: Access, ops: &[(bool, Option<Index>, String)], pieces: Vec<usize>) {
    let mut world = World::new(access, pieces, 2);
    // The model doesn't know the router's refusals.
    world.rig.policy.fallback_to_leader = access == Access::ReadWrite;
    let mut client = world.client(&[]);
    let mut due = 0;
    for (wait, loss, op) in ops {
        if client.closed {
            return;
        }
        if op == DDL {
            world.rig.judge.shape.set(world.rig.judge.shape.get() + 1);
            continue;
        }
        client.unread.extend(encode(op));
        due += text::cut(&encode(op)).iter().filter(|(tag, _)| matches!(tag, b'Q' | b'S')).count();
        if let Some(loss) = loss {
            for _ in 0..loss.index(12) {
                world.step(&mut client);
            }
            world.lose(&mut client);
        }
        if *wait {
            world.pump(&mut client);
            world.rig.catch_up();
        }
    }
    world.pump(&mut client);
    if client.closed {
        return;
    }
    let got = text::to_client(&client.got);
    assert_eq!(got.iter().filter(|message| message.starts_with('Z')).count(), due, "{got:?}");
    // What is held is held for a reason, and the session can be used.
    client.got.clear();
    client.unread.extend(encode("Q rollback / Q select 7"));
    world.pump(&mut client);
    let got = text::to_client(&client.got);
    assert!(client.closed || got.iter().any(|message| message.starts_with("D select 7")), "{got:?}");
    assert_eq!(world.leased, world.given_back + usize::from(client.held.is_some()));
}

/// Other scripts in every run. A failure tells the seed; `SWITCHYARD_SEED` repeats it.
fn config() -> ProptestConfig {
    let given = std::env::var("SWITCHYARD_SEED").ok().map(|seed| seed.parse().expect("SWITCHYARD_SEED is a number"));
    let seed = given.unwrap_or_else(|| RandomState::new().hash_one(0));
    eprintln!("SWITCHYARD_SEED={seed}");
    let cases = std::env::var("SWITCHYARD_CASES").ok().map_or(1500, |cases| cases.parse().expect("SWITCHYARD_CASES is a number"));
    ProptestConfig { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(seed), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_router_answers_as_a_direct_connection_does(
        ops in prop::collection::vec((0..2usize, any::<bool>(), happens()), 1..25),
        pieces in pieces(),
        max_prepared in 1..4usize,
    ) {
        run(Access::ReadWrite, &ops, pieces, max_prepared);
    }

    #[test]
    fn the_read_only_port_answers_as_a_replica_does(
        ops in prop::collection::vec((0..2usize, any::<bool>(), happens()), 1..25),
        pieces in pieces(),
        max_prepared in 1..4usize,
    ) {
        run(Access::ReadOnly, &ops, pieces, max_prepared);
    }

    #[test]
    fn what_comes_before_a_goodbye_is_answered(
        ops in prop::collection::vec(happens(), 1..12),
        pieces in pieces(),
        terminates in any::<bool>(),
    ) {
        run_to_goodbye(Access::ReadWrite, &ops, pieces.clone(), terminates);
        run_to_goodbye(Access::ReadOnly, &ops, pieces, terminates);
    }

    #[test]
    fn where_servers_are_lost_all_is_answered_once(
        ops in prop::collection::vec((any::<bool>(), prop::option::weighted(0.3, any::<Index>()), answered()), 1..25),
        pieces in pieces(),
    ) {
        run_with_losses(Access::ReadWrite, &ops, pieces.clone());
        run_with_losses(Access::ReadOnly, &ops, pieces);
    }

    #[test]
    fn no_bytes_of_either_side_do_harm(
        parts in prop::collection::vec((any::<bool>(), prop_oneof![
            anything().prop_map(|op| encode(&op)),
            select(vec!["Z I", "Z T", "1", "2", "3", "D x", "C X", "E 42601 x", "FATAL 57P01 x", "G", "H", "S a b", "T", "n", "s", "I", "A x", "N 0 x", "V x"]).prop_map(text::server),
            prop::collection::vec(any::<u8>(), 0..20),
        ]), 1..40),
    ) {
        let mut world = World::new(Access::ReadWrite, vec![7], 2);
        let mut client = world.client(&[]);
        for (from_client, bytes) in parts {
            for _ in 0..10 {
                if client.closed { return Ok(()); }
                let Some(want) = client.session.take_want(None) else { break };
                match want {
                    Want::Lease(need) => {
                        let member = world.rig.topology.member(&need.node).expect("a member").clone();
                        let mut params = Params::default();
                        params.set(b"DateStyle", b"none");
                        let mut state = ServerState::new(need.node, need.role, world.rig.topology.epoch, params, 2);
                        client.session.granted(&world.rig.env(), &mut client.work, &mut state, member);
                        client.held = Some(Server { state, model: model::Server::new(false, &[]), answers: Vec::new(), unflushed: Vec::new() });
                    }
                    Want::Sample | Want::Hold => client.session.denied(&mut client.work, &crate::refusal::Refusal::NoReplica),
                    Want::Departure(_) => client.session.departure(&world.rig.env(), &mut client.work, true),
                    Want::Return => {
                        client.held = None;
                        client.session.returned(&world.rig.env(), &mut client.work);
                    }
                    Want::Close | Want::Leave => client.closed = true,
                }
            }
            client.work.to_client.clear();
            client.work.to_server.clear();
            if from_client {
                client.work.client_in.extend(bytes);
                let server = client.held.as_mut().map(|server| &mut server.state);
                client.session.client_bytes(&world.rig.env(), &mut client.work, server);
            } else if let Some(server) = &mut client.held {
                client.work.server_in.extend(bytes);
                if client.session.server_bytes(&world.rig.env(), &mut client.work, &mut server.state).is_err() {
                    world.lose(&mut client);
                }
            }
        }
    }
}

/// Scripts that the random ones have found, and may not find again in a short run.
#[test]
fn what_was_found_once_is_right() {
    let together = |ops: &[&str]| ops.iter().map(|op| (1, false, (*op).to_owned())).collect::<Vec<_>>();
    // A skipped Close of the unnamed statement, in a batch that may run again: it looked like one with a Parse behind it.
    let ops = together(&["P a begin / S", "B p a / P - commit / B p - / E p / C S - / S", "B - - / H"]);
    run(Access::ReadOnly, &ops, vec![100_000], 1);
    // A Parse that fails, with a Close of its name behind it that is skipped: what was never prepared isn't there again.
    let failing = "P b insert into t / C P p / P b set local work_mem = '2MB' / B p b / E p / C P p / D S a / H / C S b / S";
    let ops = together(&["Q begin; insert into t", failing, "P b commit / S"]);
    // A Close that is skipped, with a Parse of its name behind it that is, too: it is the statement from before.
    let mut closes = together(&["P a select 2 / S"]);
    closes[0].1 = true;
    closes.extend(together(&["E p / C S a / E p / H / E p / P a select 1 / P a show work_mem / B p a / E p / S", "P a select 1 / S"]));
    for (one, other) in (1..40).flat_map(|one| (1..40).map(move |other| (one, other))) {
        run(Access::ReadOnly, &ops, vec![one, other], 1);
        run(Access::ReadOnly, &closes, vec![one, other, 39, 1], 1);
        run(Access::ReadWrite, &closes, vec![one, other, 39, 1], 1);
    }
    // Within a transaction, settings are brought beside the client's unnamed portal, not through it.
    let sets = "C S b / P b set datestyle = 'dmy' / B - b / E - / S";
    run(Access::ReadWrite, &together(&[sets, "C S a / P a begin / B - a / E - / S", "E - / B p b / S"]), vec![100_000], 1);
    run(Access::ReadOnly, &ops, vec![14, 35, 24, 28, 9, 4, 12, 27, 2, 34, 11], 1);
    // COPY data behind the end of a COPY, whose answer the server keeps to itself, waits for nothing.
    let copies = together(&["P - copy t from stdin / B - - / E - / S / d row / c / S", "B - - / E - / S", "c", "d stray"]);
    run(Access::ReadWrite, &copies, vec![100_000], 1);
}

#[test]
fn a_setting_is_brought_as_a_value() {
    let mut settings = Settings::default();
    settings.set(&"work_mem".into(), Value::Known((*b"1MB").into()));
    let mut out = Vec::new();
    Settings::default().sync_messages(&settings, ServerRole::Leader, &mut out);
    let mut server = model::Server::new(false, &[]);
    server.receive(&out);
    assert_eq!(server.value("work_mem"), "1MB");
}
