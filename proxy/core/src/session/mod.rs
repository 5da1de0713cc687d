//! One client session as a state machine.
