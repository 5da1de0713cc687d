//! A session's tests: stories told message by message, and random scripts that must get what a direct connection gives.

mod consistency;
mod dialect;
mod encoding;
mod goodbye;
mod model;
mod portals;
mod random;
mod rig;
mod script;
mod sequences;
mod stories;
mod table;
pub(super) mod text;
mod unasked;
