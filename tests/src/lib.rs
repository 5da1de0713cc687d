//! A real Patroni cluster on loopback, for tests and for the demo: etcd, Patroni and PostgreSQL, started in seconds, and broken on purpose.
//!
//! Nothing is mocked. A [`Cluster`] owns a folder ([`home`]) and every process that works in it; however the program that started it
//! ends, by a panic or `kill -9` included, those processes are gone a moment later. Waiting is always for a condition with a deadline
//! ([`eventually`]), never for time to pass.
//!
//! ```no_run
//! # async fn story() -> anyhow::Result<()> {
//! use switchyard_tests::{Cluster, Options, Router, RouterOptions};
//!
//! let cluster = Cluster::start(Options::new().members(3)).await?;
//! let router = Router::start(&cluster, RouterOptions::new()).await?;
//! let old = cluster.kill_leader().await?;
//! let new = cluster.new_leader(&old).await?;
//! # let _ = (router, new);
//! # Ok(())
//! # }
//! ```

pub mod cluster;
pub mod differential;
pub mod etcd;
pub mod haproxy;
pub mod home;
pub mod http;
pub mod leaks;
pub mod line;
pub mod load;
pub mod machine;
pub mod mix;
pub mod ports;
pub mod processes;
pub mod proxy;
pub mod psql;
pub mod raw;
pub mod regress;
pub mod router;
pub mod story;
pub mod unruly;
pub mod wait;
pub mod watch;

pub use cluster::{Cluster, Member, Options, Role, Synchronous};
pub use psql::{Finished, psql};
pub use raw::{Batch, Raw};
pub use router::{Router, RouterOptions};
pub use story::{Shared, Stories};
pub use wait::{eventually, within};

/// What tests return: any error, with its causes.
pub type Result<T = ()> = anyhow::Result<T>;
