//! PostgreSQL's own regression suite, as the judge of "nobody can tell that the router is there".
//!
//! [`judge`] asks of each of its statements what the classifier says of it, and what a server.
//!
//! [`suite`] gets it, [`run`] runs it once, against whatever listens on a port. What is compared are the output files of two runs, not
//! the suite's expected ones: those differ from any output where psql's minor version isn't the suite's.

pub mod compare;
pub mod judge;
pub mod run;
pub mod suite;
