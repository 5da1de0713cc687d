//! Runs a story. Its lines:
//!
//! - `C> Q select 1 / S`: the client sends these, in one piece; `C< ...`: this and nothing else has been sent to it.
//! - `S> ...`: this and nothing else has been sent to the server that is held; `S< ...`: it answers.
//! - `lease r1 replica`: the session wants this server connection, and gets it; `lease r1 replica unreachable`, `... canceled`.
//! - `ended`: the client has closed its sending half.
//! - `hold`, `return`, `close`, `leave`: what the session wants, `hold for a leader` and `hold for anybody` also whom it waits for; `deny`: time in the hold line is up.
//! - `departure l`: it wants to know whether that server goes away; `leaves`, `stays`: the answer.
//! - `lost`: the server connection breaks; `half 7 S< ...`: only the first bytes of an answer come.
//! - `cluster l 2: r1 r2`, `cluster none: r1`: the topology changes; `switching`: a switchover was announced; `caught up`: replicas have replayed all; `+3s`.
//!
//! Every output must be named before the next input.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::{Access, CancelKey, Env, Params, Phase, ServerState, Session, Settings, Want, Work};
use super::rig::Rig;
use super::text;
use crate::causal::Level;
use crate::marks::Touched;
use crate::refusal::Refusal;
use crate::route::ServerRole;
use crate::topology::ClusterState;
use crate::wire::reply::TxStatus;

/// How a transaction begins that has written.
pub(super) const BEGUN: &str = "C> Q begin
    C< C BEGIN / Z T
    C> Q insert into t values (1)
    lease l leader
    S> P - begin / B - - / E - / Q insert into t values (1)
    S< 1 / 2 / C BEGIN / C INSERT 0 1 / Z T
    C< C INSERT 0 1 / Z T
    ";

pub(super) struct Story {
    pub(super) rig: Rig,
    pub(super) session: Session,
    pub(super) work: Work,
    servers: HashMap<(String, ServerRole), ServerState>,
    held: Option<(String, ServerRole)>,
    names: Vec<String>,
    pub(super) max_prepared: usize,
}

impl Story {
    /// A session that hasn't begun.
    pub(super) fn fresh(access: Access, startup: &[(&str, &str)]) -> Story {
        let startup = Settings::from_startup(startup.iter().map(|(name, value)| (*name, value.as_bytes())));
        Story {
            rig: Rig::new(access),
            session: Session::new(startup, CancelKey { pid: 1, secret: [1; 4].into() }),
            work: Work::default(),
            servers: HashMap::new(),
            held: None,
            names: Vec::new(),
            max_prepared: 100,
        }
    }

    /// A session that has begun on port 15000, or on 15001.
    pub(super) fn on(access: Access) -> Story {
        let mut story = Story::fresh(access, &[]);
        match access {
            Access::ReadWrite => story.tell("start\n lease l leader\n C< S in_hot_standby off / S DateStyle ISO / K / Z I\n return"),
            Access::ReadOnly => story.tell("start\n lease r1 replica\n C< S in_hot_standby on / S DateStyle ISO / K / Z I\n return"),
        }
        story
    }

    pub(super) fn run(text: &str) {
        Story::on(Access::ReadWrite).tell(text);
    }

    pub(super) fn run_read_only(text: &str) {
        Story::on(Access::ReadOnly).tell(text);
    }

    fn server(&mut self, node: &str, role: ServerRole) -> &mut ServerState {
        let max = self.max_prepared;
        let epoch = self.rig.topology.epoch;
        self.servers.entry((node.to_owned(), role)).or_insert_with(|| {
            let mut params = Params::default();
            params.set(b"in_hot_standby", if role == ServerRole::Leader { b"off" } else { b"on" });
            params.set(b"DateStyle", b"ISO");
            ServerState::new(Arc::from(node), role, epoch, params, max)
        })
    }

    /// Whether a connection of this kind is kept for the next session.
    pub(super) fn keeps(&self, node: &str, role: ServerRole) -> bool {
        self.servers.contains_key(&(node.to_owned(), role))
    }

    pub(super) fn tell(&mut self, text: &str) {
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            self.line(line);
        }
        self.nothing_left("the end");
    }

    /// The server connection that is held has had another session before.
    pub(super) fn used(&mut self) {
        let key = self.held.as_ref().expect("holds one");
        self.servers.get_mut(key).expect("held").fresh = false;
    }

    /// On the server connection that is held, another session has set a custom setting before.
    pub(super) fn others_have_set(&mut self, name: &str) {
        let key = self.held.as_ref().expect("holds one");
        self.servers.get_mut(key).expect("held").custom.add(&name.into());
    }

    fn nothing_left(&self, before: &str) {
        let (client, server) = (text::to_client(&self.work.to_client), text::to_server(&self.work.to_server));
        assert!(client.is_empty(), "not told before «{before}»: C< {}", client.join(" / "));
        assert!(server.is_empty(), "not told before «{before}»: S> {}", server.join(" / "));
        assert!(self.session.want.is_none(), "not told before «{before}»: {:?}", self.session.want);
    }

    fn line(&mut self, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "C<" => return self.expect(line, rest, true),
            "S>" => return self.expect(line, rest, false),
            "lease" => return self.lease(line, rest),
            "departure" => {
                let want = self.session.take_want(Some(&self.work));
                assert_eq!(want, Some(Want::Departure(rest.into())), "{line}");
                return;
            }
            "hold" => {
                assert_eq!(self.session.take_want(Some(&self.work)), Some(Want::Hold), "{line}");
                match rest {
                    "for a leader" => assert!(self.session.waits_for_leader(), "{line}"),
                    "for anybody" => assert!(!self.session.waits_for_leader(), "{line}"),
                    _ => {}
                }
                return;
            }
            "sample" => {
                assert_eq!(self.session.take_want(Some(&self.work)), Some(Want::Sample), "{line}");
                return;
            }
            "close" => {
                assert_eq!(self.session.take_want(Some(&self.work)), Some(Want::Close), "{line}");
                return;
            }
            "leave" => {
                assert_eq!(self.session.take_want(Some(&self.work)), Some(Want::Leave), "{line}");
                return self.give_back();
            }
            "return" => {
                assert_eq!(self.session.take_want(Some(&self.work)), Some(Want::Return), "{line}");
                if let Some(server) = self.held.as_ref().and_then(|key| self.servers.get(key)) {
                    assert!(server.ready || server.tainted, "given back, and owes: {line}");
                }
                self.give_back();
                self.session.returned(&self.rig.env(), &mut self.work);
                return self.go_on();
            }
            _ => {}
        }
        if word == "switching" {
            // Also while a lease is on its way.
            self.rig.topology.state = ClusterState::Switching;
            return;
        }
        if word == "ended" {
            // Whatever else is under way.
            self.session.client_ended();
            return self.go_on();
        }
        self.nothing_left(line);
        match word {
            "start" => self.session.returned(&self.rig.env(), &mut self.work),
            "C>" => {
                for message in rest.split(" / ") {
                    self.work.client_in.extend(text::client(message));
                }
            }
            "S<" => self.answers(rest.split(" / ").flat_map(text::server).collect()),
            "half" => {
                let (bytes, rest) = rest.split_once(" S< ").expect("half N S< ...");
                let mut answer: Vec<u8> = rest.split(" / ").flat_map(text::server).collect();
                answer.truncate(bytes.parse().expect("a number"));
                self.answers(answer);
            }
            "lost" => self.lose(),
            "leaves" => self.session.departure(&self.rig.env(), &mut self.work, true),
            "stays" => self.session.departure(&self.rig.env(), &mut self.work, false),
            "deny" => self.session.denied(&mut self.work, &Refusal::NoLeader { waited: Duration::from_secs(1) }),
            "again" => self.session.decide_again(&self.rig.env(), &mut self.work),
            "cluster" => {
                let (leader, replicas) = rest.split_once(':').expect("cluster L N: R...");
                let leader = leader.split_once(' ').map(|(name, epoch)| (name, epoch.parse().expect("a number")));
                self.rig.cluster(leader, &replicas.split_whitespace().collect::<Vec<_>>());
                let epoch = self.rig.topology.epoch;
                self.servers.retain(|_, server| server.role == ServerRole::Replica || server.epoch == epoch);
            }
            "caught" => self.rig.catch_up(),
            "asked" => self.rig.ask_leader(),
            "level" => self.rig.policy.level = Level::ALL[Level::WORDS.iter().position(|known| *known == rest).expect("a level")],
            // Somebody else's write to a relation, or to whatever "*" stands for, is acknowledged.
            "others" => {
                let touched = if rest == "*" { Touched::Everything } else { Touched::relation(rest) };
                self.rig.now += Duration::from_millis(1);
                self.rig.marks.wrote(&touched, self.rig.now);
                self.rig.now += Duration::from_millis(1);
            }
            _ => {
                let seconds = line.strip_prefix('+').and_then(|rest| rest.strip_suffix('s')).unwrap_or_else(|| panic!("what is «{line}»?"));
                self.rig.now += Duration::from_secs(seconds.parse().expect("a number"));
            }
        }
        self.go_on();
    }

    /// A connection that can't be the next session's is kept no longer.
    fn give_back(&mut self) {
        let Some(key) = self.held.take() else { return };
        let server = self.servers.get_mut(&key).expect("held");
        self.session.let_go(Some(&mut self.work), server);
        server.fresh = false;
        if server.tainted || !server.ready || server.tx != TxStatus::Idle || !server.began.is_empty() {
            self.servers.remove(&key);
        }
    }

    /// Takes more of what the client has sent.
    pub(super) fn go_on(&mut self) {
        let server = self.held.as_ref().and_then(|key| self.servers.get_mut(key));
        self.session.client_bytes(&self.rig.env(), &mut self.work, server);
    }

    pub(super) fn answers(&mut self, bytes: Vec<u8>) {
        self.work.server_in.extend(bytes);
        let server = self.held.as_ref().and_then(|key| self.servers.get_mut(key)).expect("holds one");
        if self.session.server_bytes(&self.rig.env(), &mut self.work, server).is_err() {
            self.lose();
        }
    }

    /// The server that was held, which is gone: the session hasn't been told.
    pub(super) fn lost_one(&mut self) -> ServerState {
        let key = self.held.take().expect("holds one");
        self.servers.remove(&key).expect("known")
    }

    fn lose(&mut self) {
        let server = self.lost_one();
        self.session.server_lost(&self.rig.env(), &mut self.work, &server, false);
    }

    fn lease(&mut self, line: &str, rest: &str) {
        let words: Vec<&str> = rest.split_whitespace().collect();
        let Some(Want::Lease(need)) = self.session.take_want(Some(&self.work)) else { panic!("no lease is wanted at «{line}»") };
        let begins = self.session.beginning(&self.work).cloned();
        let mut reported = None;
        if self.work.needs_fresh() || begins.is_some() {
            // One that begins like the session reports what the session's first one did.
            reported = self.servers.remove(&(need.node.to_string(), need.role)).map(|server| server.params);
        }
        let role = if words[1] == "leader" { ServerRole::Leader } else { ServerRole::Replica };
        // Either replica is as good.
        let replica = |name: &str| name.starts_with('r');
        let node = need.node.to_string();
        assert!(need.role == role && (node == words[0] || (words[0] == "r" && replica(&node))), "wanted {need:?} at «{line}»");
        match words.get(2) {
            Some(&"unreachable") if role == ServerRole::Leader => {
                // As the driver does, until it tries again.
                let topology = self.rig.topology.without_leader();
                let env = Env { topology: &topology, ..self.rig.env() };
                self.session.decide_again(&env, &mut self.work);
                return;
            }
            Some(&"unreachable") => {
                let refusal = Refusal::ServerUnreachable { node: node.clone(), detail: String::new() };
                self.session.unreachable(&self.rig.env(), &mut self.work, &need.node, &refusal);
            }
            Some(&"canceled") => self.session.denied(&mut self.work, &Refusal::QueryCanceled),
            None => {
                let server = self.server(&node, role);
                if let Some(startup) = &begins {
                    server.begins_with(startup);
                    server.params = reported.unwrap_or_else(|| server.params.clone());
                }
                self.held = Some((node.clone(), role));
                let member = self.rig.topology.member(&node).expect("a member").clone();
                let server = self.servers.get_mut(&(node, role)).expect("made above");
                self.session.granted(&self.rig.env(), &mut self.work, server, member);
                assert!(matches!(self.session.phase, Phase::Holding { .. }));
            }
            Some(other) => panic!("what is «{other}»?"),
        }
        self.go_on();
    }

    fn expect(&mut self, line: &str, rest: &str, client: bool) {
        let mut got = if client {
            text::to_client(&std::mem::take(&mut self.work.to_client))
        } else {
            let got = text::to_server(&std::mem::take(&mut self.work.to_server));
            got.into_iter().map(|message| self.short_names(message)).collect()
        };
        let mut wanted: Vec<&str> = rest.split(" / ").collect();
        if rest.is_empty() {
            wanted.clear();
        }
        if got.len() > 1 && wanted.last() == Some(&"...") {
            got.truncate(wanted.len() - 1);
            wanted.pop();
        }
        assert_eq!(got, wanted, "at «{line}»");
        // What waited for room goes on.
        self.go_on();
    }

    /// Statements' names on servers by the order in which they come up: `sy1`, `sy2`.
    fn short_names(&mut self, mut message: String) -> String {
        while let Some(at) = message.find("sy_") {
            let long = message[at..at + 35].to_owned();
            let known = self.names.iter().position(|name| *name == long);
            let index = known.unwrap_or_else(|| {
                self.names.push(long.clone());
                self.names.len() - 1
            });
            message = message.replace(&long, &format!("sy{}", index + 1));
        }
        message
    }
}
