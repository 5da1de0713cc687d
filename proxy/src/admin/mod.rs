//! HTTP routes, page and metrics.
