//! Choosing a node.
