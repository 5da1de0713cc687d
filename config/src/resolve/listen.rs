//! `[listen]`: the router's own sockets.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{Resolver, or};
use crate::model::Listen;
use crate::problem::Place;
use crate::raw::{At, List, RawListen};
use crate::value::Address;

/// The ports that HAProxy had in the set-ups that Switchyard replaces; every address, IPv4 included.
const READ_WRITE_PORT: u16 = 15000;
const READ_ONLY_PORT: u16 = 15001;
const HTTP_PORT: u16 = 18080;

/// `sun_path` of `struct sockaddr_un` (unix(7)) has 108 bytes, the last of them zero.
const UNIX_PATH_MAX: usize = 107;
/// `.s.PGSQL.65535`, with the slash before it.
const UNIX_NAME_BYTES: usize = 15;

impl Resolver {
    pub(super) fn listen(&mut self, raw: RawListen) -> Listen {
        let mut taken = Vec::new();
        let read_write = self.addresses("listen.read_write", raw.read_write, READ_WRITE_PORT, &mut taken);
        let read_only = self.addresses("listen.read_only", raw.read_only, READ_ONLY_PORT, &mut taken);
        let http = self.addresses("listen.http", raw.http, HTTP_PORT, &mut taken);
        if read_write.is_empty() && read_only.is_empty() && raw.unix_socket_dir.is_none() {
            self.problem(self.nowhere(), "listen.read_write", "is empty, and so is listen.read_only: clients have no port to come to");
        }
        let unix_socket_dir = raw.unix_socket_dir.map(|given| self.socket_folder(given, &read_write, &read_only));
        Listen { read_write, read_only, http, unix_socket_dir, proxy_protocol: or(raw.proxy_protocol, false) }
    }

    fn addresses(
        &mut self,
        key: &'static str,
        given: Option<List<Address>>,
        default_port: u16,
        taken: &mut Vec<(&'static str, SocketAddr)>,
    ) -> Vec<SocketAddr> {
        let items = match given {
            Some(list) => list.items,
            None => {
                let place = self.nowhere();
                let address = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, default_port));
                vec![At { value: Address(address), place }]
            }
        };
        let mut addresses = Vec::new();
        for At { value: Address(address), place } in items {
            match taken.iter().find(|(_, other)| clash(*other, address)) {
                Some((other_key, other)) if *other == address => {
                    self.problem(place, key, format!("{address} is taken already, by {other_key}"));
                }
                Some((other_key, other)) => {
                    self.problem(place, key, format!("{address} clashes with {other}, of {other_key}, which means every address"));
                }
                None => {
                    taken.push((key, address));
                    addresses.push(address);
                }
            }
        }
        addresses
    }

    fn socket_folder(&mut self, given: At<PathBuf>, read_write: &[SocketAddr], read_only: &[SocketAddr]) -> PathBuf {
        const KEY: &str = "listen.unix_socket_dir";
        let path = self.path(&given);
        let place: Place = given.place;
        if path.as_os_str().len() + UNIX_NAME_BYTES > UNIX_PATH_MAX {
            let text = format!("{} is too long: a socket's path has at most {UNIX_PATH_MAX} bytes", path.display());
            self.problem(place.clone(), KEY, text);
        }
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => self.problem(place.clone(), KEY, format!("{} is not a directory", path.display())),
            Err(error) => self.problem(place.clone(), KEY, format!("{}: {error}", path.display())),
        }
        // A socket's name holds the port alone.
        if let Some(both) = read_write.iter().find(|a| a.port() != 0 && read_only.iter().any(|b| b.port() == a.port())) {
            let text =
                format!("listen.read_write and listen.read_only both have port {}, so their sockets would have one name", both.port());
            self.problem(place, KEY, text);
        }
        path
    }
}

/// Whether the kernel refuses to bind the second: the same port, and the same address or every address. `[::]` takes IPv4 too.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = |all: SocketAddr, other: SocketAddr| all.ip().is_unspecified() && (all.is_ipv6() || other.is_ipv4());
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || covers(a, b) || covers(b, a))
}
