//! `cargo +nightly fuzz run statements` (in proxy/core): any bytes as a statement.

#![no_main]

#[path = "../properties.rs"]
mod properties;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;

use properties::Properties;

thread_local! {
    static PROPERTIES: RefCell<Properties> = RefCell::new(Properties::new());
}

fuzz_target!(|sql: &[u8]| PROPERTIES.with_borrow_mut(|properties| properties.hold(sql)));
