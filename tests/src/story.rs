//! Telling several stories against one cluster: fewer starts, faster tests.
