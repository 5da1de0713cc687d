//! Logging clients in with what PostgreSQL knows, and logging in to servers as them.
//!
//! No password is ever stored. A client's SCRAM proof yields its `ClientKey`, which logs in to every member as that user.
//! Invariant: keys and verifiers live in types that wipe their memory, and none of them is printed.

pub mod backend;
pub mod facts;
pub mod frontend;
pub mod rules;
pub mod scram;
pub mod secrets;

pub use backend::{AuthError, ConnectError, Connected, Login, Target, connect};
pub use facts::{Facts, LoginFacts};
pub use frontend::{Gate, Identity, LoginError};
pub use secrets::Credential;
