//! PostgreSQL's frontend/backend protocol, version 3: headers, borrowed views of the few messages we look into, and
//! the messages we author. Source: PostgreSQL documentation, "Message Formats".

pub mod frame;
pub mod reply;
pub mod startup;
pub mod view;
