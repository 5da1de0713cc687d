//! What a name means: built-in functions and relations that run on the leader, and the conservative rule over catalog facts.
//!
//! Volatility is the wrong test by itself: `version()` is stable and tells about one server, `random()` is volatile and harmless. Invariant:
//! a name that neither PostgreSQL nor the facts know is a function to run on the leader.

use std::sync::LazyLock;

use rustc_hash::{FxHashMap, FxHashSet};

use super::builtins;
use super::catalog::{Facts, FunctionFact};
use super::verdict::{Class, Effect, PinReason};

/// What calling a function means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Read,
    /// Gives the time of the server's clock.
    Clock,
    Write {
        rule: &'static str,
        /// As PostgreSQL names it in its refusal, where it refuses the call itself.
        command: Option<&'static str>,
        effect: CallEffect,
    },
}

/// What a call leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallEffect {
    None,
    Pin(PinReason),
    AdvisoryUnlockAll,
    SetConfig,
}

impl CallEffect {
    pub(super) fn effect(self) -> Option<Effect> {
        match self {
            CallEffect::None => None,
            CallEffect::Pin(reason) => Some(Effect::Pin(reason)),
            CallEffect::AdvisoryUnlockAll => Some(Effect::AdvisoryUnlockAll),
            CallEffect::SetConfig => Some(Effect::SetUnknown),
        }
    }
}

const fn write(rule: &'static str) -> Call {
    Call::Write { rule, command: None, effect: CallEffect::None }
}

const fn writes(command: &'static str) -> Call {
    Call::Write { rule: "function", command: Some(command), effect: CallEffect::None }
}

const fn pins(rule: &'static str, command: Option<&'static str>, reason: PinReason) -> Call {
    Call::Write { rule, command, effect: CallEffect::Pin(reason) }
}

/// A user's function that isn't proven to read only may leave anything behind in its session: settings, temporary tables, locks.
const fn user_code(rule: &'static str) -> Call {
    pins(rule, None, PinReason::UserCode)
}

const UNKNOWN: Call = user_code("unknown_function");
/// DDL has passed since the facts were read.
const IN_DOUBT: &str = "facts_in_doubt";

/// Tells about this server, or reads differently on a standby.
const SERVER: Call = write("server_function");
/// Tells of counters that the session's own statements raise.
const STATISTICS: Call = pins("server_function", None, PinReason::Statistics);
/// Runs text that is built at run time, or reads relations that the statement doesn't name.
const RUNS_TEXT: Call = write("runs_text");

/// Built-in functions whose volatility isn't their verdict, by name.
fn overridden(name: &str) -> Option<Call> {
    Some(match name {
        "nextval" => pins("sequence", Some("nextval()"), PinReason::Sequence),
        "setval" => pins("sequence", Some("setval()"), PinReason::Sequence),
        "currval" | "lastval" => pins("sequence", None, PinReason::Sequence),
        "pg_sequence_last_value" => write("sequence"),
        "set_config" => Call::Write { rule: "set_config", command: None, effect: CallEffect::SetConfig },
        "setseed" => pins("session_state", None, PinReason::Setseed),
        "pg_backend_pid" => pins("server_function", None, PinReason::BackendPid),
        // Refused during recovery, and harmless in a READ ONLY transaction of the leader's.
        "txid_current" | "pg_current_xact_id" => {
            Call::Write { rule: "server_function", command: Some("pg_current_xact_id()"), effect: CallEffect::None }
        }
        "pg_notify" => writes("NOTIFY"),

        "pg_advisory_lock" | "pg_advisory_lock_shared" | "pg_try_advisory_lock" | "pg_try_advisory_lock_shared" => {
            pins("advisory_lock", None, PinReason::AdvisoryLock)
        }
        "pg_advisory_unlock_all" => Call::Write { rule: "advisory_lock", command: None, effect: CallEffect::AdvisoryUnlockAll },
        _ if name.contains("_advisory_") => write("advisory_lock"),

        "lo_creat" => writes("lo_creat()"),
        "lo_create" => writes("lo_create()"),
        "lo_from_bytea" => writes("lo_from_bytea()"),
        "lo_import" => writes("lo_import()"),
        "lo_put" => writes("lo_put()"),
        "lo_truncate" => writes("lo_truncate()"),
        "lo_truncate64" => writes("lo_truncate64()"),
        "lo_unlink" => writes("lo_unlink()"),
        "lowrite" => writes("lowrite()"),
        "loread" => write("large_object"),
        _ if name.starts_with("lo_") => write("large_object"),

        // A backup, and a temporary slot, is its session's, and no look shows whose.
        "pg_backup_start" | "pg_backup_stop" | "pg_start_backup" | "pg_stop_backup" => pins("server_function", None, PinReason::Other),
        "pg_create_physical_replication_slot"
        | "pg_create_logical_replication_slot"
        | "pg_copy_physical_replication_slot"
        | "pg_copy_logical_replication_slot" => pins("server_function", None, PinReason::Other),

        "query_to_xml"
        | "query_to_xmlschema"
        | "query_to_xml_and_xmlschema"
        | "cursor_to_xml"
        | "cursor_to_xmlschema"
        | "table_to_xml"
        | "table_to_xml_and_xmlschema"
        | "schema_to_xml"
        | "schema_to_xml_and_xmlschema"
        | "database_to_xml"
        | "database_to_xml_and_xmlschema"
        | "ts_stat"
        | "ts_rewrite" => RUNS_TEXT,

        "now" | "clock_timestamp" | "statement_timestamp" | "transaction_timestamp" | "timeofday" | "age" | "uuidv7" => Call::Clock,

        // Volatile, and harmless on a replica.
        "random"
        | "random_normal"
        | "gen_random_uuid"
        | "uuidv4"
        | "array_sample"
        | "array_shuffle"
        | "current_query"
        | "pg_sleep"
        | "pg_sleep_for"
        | "pg_sleep_until"
        | "pg_partition_ancestors"
        | "pg_partition_tree" => Call::Read,

        // Of a snapshot that is given as an argument.
        "pg_snapshot_in"
        | "pg_snapshot_out"
        | "pg_snapshot_recv"
        | "pg_snapshot_send"
        | "pg_snapshot_xip"
        | "pg_snapshot_xmax"
        | "pg_snapshot_xmin"
        | "pg_visible_in_snapshot"
        | "pg_column_size"
        | "pg_is_other_temp_schema" => Call::Read,

        "pg_is_in_recovery"
        | "pg_is_wal_replay_paused"
        | "pg_get_wal_replay_pause_state"
        | "version"
        | "mxid_age"
        | "pg_postmaster_start_time"
        | "pg_conf_load_time"
        | "current_setting"
        | "pg_settings_get_flags"
        | "pg_show_all_settings"
        | "pg_current_snapshot"
        | "pg_export_snapshot"
        | "pg_prepared_statement"
        | "pg_cursor"
        | "pg_show_all_file_settings"
        | "pg_hba_file_rules"
        | "pg_ident_file_mappings"
        | "pg_lock_status"
        | "pg_blocking_pids"
        | "pg_safe_snapshot_blocking_pids"
        | "pg_get_backend_memory_contexts"
        | "pg_get_shmem_allocations"
        | "pg_get_replication_slots"
        | "pg_listening_channels"
        | "pg_notification_queue_usage"
        | "pg_my_temp_schema"
        | "pg_config"
        | "pg_current_logfile"
        | "pg_jit_available"
        | "pg_available_extensions"
        | "pg_available_extension_versions"
        | "pg_extension_update_paths"
        | "pg_tablespace_location"
        | "pg_tablespace_databases"
        | "pg_collation_actual_version"
        | "pg_database_collation_actual_version"
        | "pg_get_loaded_modules" => SERVER,
        "pg_stat_force_next_flush" | "pg_stat_have_stats" | "pg_stat_get_snapshot_timestamp" => STATISTICS,
        _ if counts_own_statements(name) => STATISTICS,
        _ => return server_family(name),
    })
}

/// The functions behind the counters of tables, indexes and functions. A server process keeps its own back for a second, and longer when it is
/// idle (pgstat.c), so that only a session that stays on one sees them as it would without a router.
pub(super) fn counts_own_statements(name: &str) -> bool {
    const COUNTERS: [&str; 8] =
        ["numscans", "tuples_", "live_tuples", "dead_tuples", "ins_since_vacuum", "mod_since_analyze", "blocks_", "function_"];
    let Some(counter) = name.strip_prefix("pg_stat_get_") else { return false };
    let counter = counter.strip_prefix("xact_").unwrap_or(counter);
    COUNTERS.iter().any(|prefix| counter.starts_with(prefix))
}

/// Why a session that reads this relation needs a server connection of its own: its rows are counters that the session's own statements
/// raise.
pub(super) fn pinning_relation(schema: Option<&str>, name: &str) -> Option<PinReason> {
    const KINDS: [&str; 4] = ["_tables", "_indexes", "_sequences", "_functions"];
    if !matches!(schema, None | Some("pg_catalog")) {
        return None;
    }
    let counters = (name.starts_with("pg_stat_") || name.starts_with("pg_statio_"))
        && (name == "pg_stat_database" || KINDS.iter().any(|kind| name.ends_with(kind)));
    counters.then_some(PinReason::Statistics)
}

/// Whole families that tell about the server: `inet_*`, `txid_*`, `pg_*xact*`, `pg_control_*`, `pg_last_*`, `pg_ls_*`, `pg_stat_*`,
/// `pg_read_*file`, `pg_*_size`, and what handles WAL.
fn server_family(name: &str) -> Option<Call> {
    const PREFIXES: [&str; 6] = ["pg_control_", "pg_last_", "pg_ls_", "pg_stat_", "pg_wal", "pg_current_wal"];
    let tail = name.strip_prefix("pg_");
    let address = ["inet_client_addr", "inet_client_port", "inet_server_addr", "inet_server_port"].contains(&name);
    let server = address
        || (name.starts_with("txid_") && !matches!(name, "txid_snapshot_in" | "txid_snapshot_out"))
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || tail
            .is_some_and(|tail| tail.contains("xact") || tail.ends_with("_size") || (tail.starts_with("read_") && tail.contains("file")));
    server.then_some(SERVER)
}

/// Types that are written like calls (`func_get_detail` of `src/backend/parser/parse_func.c`: a cast then), and that no function is named after.
/// Their input functions read catalogs at most.
const TYPES_AS_FUNCTIONS: [&str; 15] = [
    "regclass",
    "regcollation",
    "regconfig",
    "regdictionary",
    "regnamespace",
    "regoper",
    "regoperator",
    "regproc",
    "regprocedure",
    "regrole",
    "regtype",
    "tsquery",
    "tsvector",
    "uuid",
    "jsonpath",
];

/// What calling a function of `pg_catalog` means; `None` where there is none of that name.
pub(super) fn builtin(name: &str) -> Option<Call> {
    static CALLS: LazyLock<FxHashMap<&str, Call>> = LazyLock::new(|| {
        let of_list = |list: &'static [&str], call: Call| list.iter().map(move |name| (*name, overridden(name).unwrap_or(call)));
        let types = TYPES_AS_FUNCTIONS.iter().map(|name| (*name, Call::Read));
        // What is volatile in one of its forms is so in all: the last entry counts.
        types
            .chain(of_list(builtins::IMMUTABLE, Call::Read))
            .chain(of_list(builtins::STABLE, Call::Read))
            .chain(of_list(builtins::VOLATILE, write("volatile")))
            .collect()
    });
    CALLS.get(name).copied()
}

/// What calling a function means, under the conservative rule: of an unqualified name, the worst of all candidates in any schema.
pub(super) fn call(schema: Option<&str>, name: &str, facts: &Facts) -> Call {
    let built_in = match schema {
        None | Some("pg_catalog") => builtin(name),
        // JDBC drivers and pg_dump ask these, which are immutable or read the catalog.
        Some("information_schema") if name.starts_with("_pg_") => Some(Call::Read),
        Some(_) => None,
    };
    if let Some(Call::Write { .. }) = built_in {
        return built_in.unwrap_or(SERVER);
    }
    let mut found = built_in;
    for fact in facts.functions(name) {
        let candidate = match schema {
            None => !(fact.hidden_by_builtin && built_in.is_some()),
            Some(schema) => *fact.schema == *schema,
        };
        if candidate && fact.class != Class::Read {
            return user_code(fact.rule);
        }
        if candidate && facts.is_in_doubt() {
            return user_code(IN_DOUBT);
        }
        if candidate {
            found = found.or(Some(Call::Read));
        }
    }
    found.unwrap_or(UNKNOWN)
}

/// What `value.name` means if `name` isn't a column: a call of a function with one argument (PostgreSQL's "functional notation").
pub(super) fn attribute(name: &str, facts: &Facts) -> Option<Call> {
    static BAD: LazyLock<FxHashMap<&str, Call>> = LazyLock::new(|| {
        let bad = |name: &&'static str| Some((*name, builtin(name).filter(|call| matches!(call, Call::Write { .. }))?));
        builtins::ONE_ARGUMENT.iter().filter_map(bad).collect()
    });
    if let Some(call) = BAD.get(name) {
        return Some(*call);
    }
    let bad = |fact: &&FunctionFact| fact.one_argument && (fact.class != Class::Read || facts.is_in_doubt());
    let fact = facts.functions(name).iter().find(bad)?;
    Some(user_code(if fact.class == Class::Read { IN_DOUBT } else { fact.rule }))
}

/// Relations of `pg_catalog` that show what lives on one server only.
fn server_relation(name: &str) -> bool {
    matches!(
        name,
        "pg_locks"
            | "pg_settings"
            | "pg_replication_slots"
            | "pg_replication_origin_status"
            | "pg_prepared_xacts"
            | "pg_prepared_statements"
            | "pg_cursors"
            | "pg_file_settings"
            | "pg_hba_file_rules"
            | "pg_ident_file_mappings"
            | "pg_config"
            | "pg_available_extensions"
            | "pg_available_extension_versions"
            | "pg_backend_memory_contexts"
            | "pg_shmem_allocations"
            | "pg_shmem_allocations_numa"
            | "pg_dsm_registry_allocations"
            | "pg_aios"
            | "pg_wait_events"
    )
}

/// Why reading a relation can't leave the leader; `None` where it can. `bound_here`: the statement's own WITH binds the name somewhere.
pub(super) fn relation(schema: Option<&str>, name: &str, facts: &Facts, bound_here: bool) -> Option<&'static str> {
    let catalog = matches!(schema, None | Some("pg_catalog"));
    // Extensions' statistics (pg_stat_statements) stand in any schema.
    let statistics = name.starts_with("pg_stat_") || name.starts_with("pg_statio_");
    if statistics || (catalog && server_relation(name)) {
        return Some("server_relation");
    }
    if (catalog && name == "pg_sequences") || (schema == Some("information_schema") && name == "sequences") {
        return Some("sequence");
    }
    if schema.is_some_and(|schema| schema.starts_with("pg_temp") || schema.starts_with("pg_toast_temp")) {
        return Some("temporary");
    }
    let mut known = false;
    for fact in facts.relations(name).iter().filter(|fact| schema.is_none_or(|schema| *fact.schema == *schema)) {
        if fact.class != Class::Read {
            return Some(fact.rule);
        }
        if fact.rule == "view" && facts.is_in_doubt() {
            return Some(IN_DOUBT);
        }
        known = true;
    }
    (!known && !bound_here && is_unknown_relation(schema, name, facts)).then_some("unknown_relation")
}

/// Whether a relation is none that the facts know, though they know all: it is younger, or temporary.
pub(super) fn is_unknown_relation(schema: Option<&str>, name: &str, facts: &Facts) -> bool {
    let of_the_system =
        matches!(schema, Some("pg_catalog" | "information_schema" | "pg_toast")) || (schema.is_none() && name.starts_with("pg_"));
    let is_meant = |of: &str| schema.is_none_or(|schema| schema == of);
    facts.is_complete() && !of_the_system && !facts.relations(name).iter().any(|fact| is_meant(&fact.schema))
}

/// Whether an operator is PostgreSQL's, or one that the facts know.
pub(super) fn is_known_operator(symbol: &str, facts: &Facts) -> bool {
    is_builtin_operator(symbol) || facts.operator(symbol).is_some()
}

fn is_builtin_operator(symbol: &str) -> bool {
    static OPERATORS: LazyLock<FxHashSet<&str>> = LazyLock::new(|| builtins::OPERATORS.iter().copied().collect());
    OPERATORS.contains(symbol)
}

/// Why an operator can't run on a replica; `None` where it can.
pub(super) fn operator(symbol: &str, facts: &Facts) -> Option<&'static str> {
    match facts.operator(symbol) {
        Some((Class::Read, _)) if facts.is_in_doubt() => Some(IN_DOUBT),
        Some((Class::Read, _)) => None,
        Some((_, rule)) => Some(rule),
        None if is_builtin_operator(symbol) => None,
        None => Some("unknown_operator"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_sorted() {
        for list in [builtins::IMMUTABLE, builtins::STABLE, builtins::VOLATILE, builtins::ONE_ARGUMENT, builtins::OPERATORS] {
            assert!(list.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }

    #[test]
    fn a_hidden_candidate_doesnt_count_and_others_do() {
        let fact = |schema: &str, hidden| super::super::catalog::FunctionFact {
            schema: schema.into(),
            class: Class::Write,
            rule: "volatile",
            hidden_by_builtin: hidden,
            one_argument: true,
            reads: crate::marks::Touched::Nothing,
        };
        let facts = Facts::builder(1).function("lower", fact("other", true)).function("upper", fact("other", false)).build();
        assert_eq!(call(None, "lower", &facts), Call::Read);
        assert_eq!(call(Some("other"), "lower", &facts), user_code("volatile"));
        assert_eq!(call(None, "upper", &facts), user_code("volatile"));
        assert_eq!(call(Some("pg_catalog"), "upper", &facts), Call::Read);
        assert_eq!(call(Some("other"), "trim", &facts), UNKNOWN);
    }
}
