//! The HTTP side over real sockets: routes, readiness, metrics, HAProxy's CSV, garbage, slow clients, and the page in a browser.

mod dashboards;
mod fixture;
mod http;
mod page;
mod views;
