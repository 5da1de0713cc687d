//! Logging clients in with what PostgreSQL knows, and logging in to servers as them.
