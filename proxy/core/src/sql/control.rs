//! Statements that aren't queries: transactions, session state, utility commands, and those that only wrap a query.
//!
//! Recognised by their key words. Invariant: what isn't recognised is a write, and whatever changes the session's state says so as an effect.
//! Source: PostgreSQL `src/backend/parser/gram.y`; the names of commands are those of `CreateCommandTag` (`src/backend/tcop/utility.c`).

use std::sync::Arc;

use super::classify::{Judge, Setting, Words};
use super::lexer::TokenKind;
use super::query;
use super::verdict::{Class, Effect, Kind, PinReason, SetTo, TransactionModes};

type Described = (Kind, &'static str);

/// Judges a statement that begins with none of SELECT, VALUES, TABLE, WITH or a parenthesis.
pub(super) fn judge(judge: &mut Judge<'_>, words: Words<'_>) -> Described {
    let first = words.word(0);
    match first.as_str() {
        "insert" => data(judge, words, Kind::Insert, "INSERT"),
        "update" => data(judge, words, Kind::Update, "UPDATE"),
        "delete" => data(judge, words, Kind::Delete, "DELETE"),
        "merge" => data(judge, words, Kind::Merge, "MERGE"),
        "begin" | "start" => begin(judge, words),
        "commit" | "end" | "rollback" | "abort" | "savepoint" | "release" => transaction(judge, words, first.as_str()),
        "set" => set(judge, words),
        "reset" => reset(judge, words),
        "discard" => discard(judge, words),
        "prepare" => prepare(judge, words),
        "execute" => execute(judge, words),
        "deallocate" => deallocate(judge, words),
        "listen" => {
            judge.effect(Effect::Listen { channel: name_at(words, 1) });
            judge.pin(PinReason::Listen);
            utility(judge, "listen", "LISTEN")
        }
        "unlisten" => {
            let all = words.kind(1) == Some(TokenKind::Operator);
            judge.effect(if all { Effect::UnlistenAll } else { Effect::Unlisten { channel: name_at(words, 1) } });
            (Kind::Utility, "UNLISTEN")
        }
        "notify" => utility(judge, "notify", "NOTIFY"),
        "declare" => declare(judge, words),
        "fetch" | "move" => {
            judge.effect(Effect::Fetch { name: name_at(words, words.len() - 1) });
            utility(judge, "cursor", if words.is(0, "move") { "MOVE" } else { "FETCH" })
        }
        "close" => {
            let all = words.is(1, "all");
            judge.effect(Effect::CloseCursor { name: (!all).then(|| name_at(words, 1)) });
            utility(judge, "cursor", if all { "CLOSE CURSOR ALL" } else { "CLOSE CURSOR" })
        }
        "lock" => utility(judge, "lock", "LOCK TABLE"),
        "load" => {
            judge.pin(PinReason::Load);
            utility(judge, "load", "LOAD")
        }
        "checkpoint" => utility(judge, "checkpoint", "CHECKPOINT"),
        "show" => utility(judge, "show", "SHOW"),
        "do" => {
            judge.effect(Effect::MayCommit);
            judge.pin(PinReason::UserCode);
            utility(judge, "code", "DO")
        }
        "call" => {
            judge.effect(Effect::MayCommit);
            judge.pin(PinReason::UserCode);
            utility(judge, "code", "CALL")
        }
        "vacuum" => utility(judge, "maintenance", "VACUUM"),
        "analyze" | "analyse" => utility(judge, "maintenance", "ANALYZE"),
        "reindex" => utility(judge, "maintenance", "REINDEX"),
        "cluster" | "repack" => utility(judge, "maintenance", "CLUSTER"),
        "copy" => copy(judge, words),
        "explain" => explain(judge, words),
        "truncate" => data(judge, words, Kind::Utility, "TRUNCATE TABLE"),
        "create" => create(judge, words),
        "alter" => {
            alone(judge, words);
            if ["function", "procedure", "routine", "role", "user", "database", "system"].iter().any(|object| words.is(1, object)) {
                names_settings(judge, words);
            }
            ddl(judge, alter_or_drop(words, &ALTERED))
        }
        "drop" if words.is(1, "owned") => ddl(judge, "DROP OWNED"),
        "drop" => {
            alone(judge, words);
            dropped_tables(judge, words);
            ddl(judge, alter_or_drop(words, &DROPPED))
        }
        "comment" => ddl(judge, "COMMENT"),
        "grant" => ddl(judge, if has_word(words, "on") { "GRANT" } else { "GRANT ROLE" }),
        "revoke" => ddl(judge, if has_word(words, "on") { "REVOKE" } else { "REVOKE ROLE" }),
        "refresh" => ddl(judge, "REFRESH MATERIALIZED VIEW"),
        "reassign" => ddl(judge, "REASSIGN OWNED"),
        "security" => ddl(judge, "SECURITY LABEL"),
        "import" => ddl(judge, "IMPORT FOREIGN SCHEMA"),
        _ => {
            judge.write("unparsed", &words.text(0));
            (Kind::Unknown, "")
        }
    }
}

fn utility(judge: &mut Judge<'_>, rule: &'static str, command: &'static str) -> Described {
    judge.write(rule, command);
    (Kind::Utility, command)
}

fn ddl(judge: &mut Judge<'_>, command: &'static str) -> Described {
    judge.write("ddl", command);
    judge.effect(Effect::Ddl);
    (Kind::Utility, command)
}

/// INSERT, UPDATE, DELETE, MERGE and TRUNCATE: writes, whose calls may still change the session.
fn data(judge: &mut Judge<'_>, words: Words<'_>, kind: Kind, command: &'static str) -> Described {
    judge.write(if kind == Kind::Utility { "truncate" } else { "data_change" }, command);
    query::effects(judge, words);
    (kind, command)
}

/// The name at a place, as effects carry it.
fn name_at(words: Words<'_>, at: usize) -> Arc<str> {
    words.name(at).map_or_else(|| Arc::from(""), |name| Arc::from(name.as_str()))
}

fn has_word(words: Words<'_>, word: &str) -> bool {
    (0..words.len()).any(|at| words.is(at, word))
}

/// `transaction_mode_list`, from `at` on.
fn transaction_modes(words: Words<'_>, at: usize) -> TransactionModes {
    let mut modes = TransactionModes::default();
    for at in at..words.len() {
        match words.word(at).as_str() {
            "serializable" => (modes.serializable, modes.repeatable_read) = (Some(true), Some(false)),
            "repeatable" => (modes.serializable, modes.repeatable_read) = (Some(false), Some(true)),
            "committed" | "uncommitted" => (modes.serializable, modes.repeatable_read) = (Some(false), Some(false)),
            "only" => modes.read_only = Some(true),
            "write" => modes.read_only = Some(false),
            "deferrable" => modes.deferrable = Some(!words.is(at.wrapping_sub(1), "not")),
            _ => {}
        }
    }
    modes
}

/// Whether everything from `at` on is `transaction_mode_list_or_empty`.
fn well_formed_modes(words: Words<'_>, mut at: usize) -> bool {
    const MODES: [&[&str]; 8] = [
        &["isolation", "level", "serializable"],
        &["isolation", "level", "repeatable", "read"],
        &["isolation", "level", "read", "committed"],
        &["isolation", "level", "read", "uncommitted"],
        &["read", "only"],
        &["read", "write"],
        &["not", "deferrable"],
        &["deferrable"],
    ];
    let first = at;
    while at < words.len() {
        // The comma between two modes may be left out.
        if at > first && words.kind(at) == Some(TokenKind::Comma) {
            at += 1;
        }
        let fits = |mode: &&[&str]| mode.iter().enumerate().all(|(offset, word)| words.is(at + offset, word));
        let Some(mode) = MODES.iter().copied().find(fits) else { return false };
        at += mode.len();
    }
    true
}

/// Of a statement that PostgreSQL won't parse: it must get the chance to say so, and nobody may answer in its place.
fn malformed(judge: &mut Judge<'_>, command: &str) {
    judge.write("unparsed", command);
    judge.effect(Effect::MayCommit);
}

/// Behind BEGIN, COMMIT and the like.
fn after_work(words: Words<'_>) -> usize {
    if words.is(1, "work") || words.is(1, "transaction") { 2 } else { 1 }
}

/// What a standby refuses: SERIALIZABLE, and READ WRITE.
fn judge_modes(judge: &mut Judge<'_>, modes: TransactionModes) {
    if modes.serializable == Some(true) {
        judge.write("serializable", "SERIALIZABLE");
    }
    if modes.read_only == Some(false) {
        judge.write("read_write", "READ WRITE");
    }
}

fn begin(judge: &mut Judge<'_>, words: Words<'_>) -> Described {
    let start = words.is(0, "start");
    if start && !words.is(1, "transaction") {
        judge.write("unparsed", &words.text(0));
        return (Kind::Unknown, "");
    }
    let modes = transaction_modes(words, 1);
    judge_modes(judge, modes);
    judge.effect(Effect::Begin(modes));
    if !well_formed_modes(words, after_work(words)) {
        malformed(judge, "BEGIN");
    }
    (Kind::Transaction, if start { "START TRANSACTION" } else { "BEGIN" })
}

fn transaction(judge: &mut Judge<'_>, words: Words<'_>, first: &str) -> Described {
    let prepared = words.is(1, "prepared");
    let chain = words.len() >= 3 && words.is(words.len() - 1, "chain") && !words.is(words.len() - 2, "no");
    let to = has_word(words, "to");
    let (effect, command) = match first {
        "commit" if prepared => return utility(judge, "two_phase", "COMMIT PREPARED"),
        "rollback" if prepared => return utility(judge, "two_phase", "ROLLBACK PREPARED"),
        "commit" | "end" => (Effect::Commit { chain }, "COMMIT"),
        "savepoint" => (Effect::Savepoint { name: name_at(words, 1) }, "SAVEPOINT"),
        "release" => (Effect::Release { name: name_at(words, words.len() - 1) }, "RELEASE"),
        "rollback" if to => (Effect::RollbackTo { name: name_at(words, words.len() - 1) }, "ROLLBACK"),
        _ => (Effect::Rollback { chain }, "ROLLBACK"),
    };
    let ends = matches!(effect, Effect::Commit { .. } | Effect::Rollback { .. });
    judge.effect(effect);
    let rest = words.from(after_work(words));
    let chained = rest.is(0, "and") && (rest.is(1, "chain") || (rest.is(1, "no") && rest.is(2, "chain")));
    if ends && !(rest.len() == 0 || (chained && rest.len() == if rest.is(1, "no") { 3 } else { 2 })) {
        malformed(judge, command);
    }
    (Kind::Transaction, command)
}

/// Whether a word of SET's own, such as NAMES or SESSION, stands there as the name of a parameter, or as the prefix of one: what follows tells.
fn names_parameter(words: Words<'_>, at: usize) -> bool {
    matches!(words.kind(at + 1), Some(TokenKind::Dot | TokenKind::Operator)) || words.is(at + 1, "to") || words.is(at + 1, "from")
}

/// The place behind SET [SESSION|LOCAL].
fn after_scope(words: Words<'_>) -> usize {
    let scope = |word| words.is(1, word) && !names_parameter(words, 1);
    // SET SESSION AUTHORIZATION and SET SESSION CHARACTERISTICS AS have one word less than they seem to.
    let own = words.is(2, "authorization") || (words.is(2, "characteristics") && words.is(3, "as"));
    if scope("local") || (scope("session") && !own) { 2 } else { 1 }
}

/// What a lone `SET [SESSION|LOCAL] name = value` sets, where the value is one literal or word; for the router's own parameters.
pub(super) fn setting(words: Words<'_>) -> Option<Setting> {
    let local = words.is(1, "local");
    let at = after_scope(words);
    let (name, end) = setting_name(words, at).filter(|_| words.is(0, "set"))?;
    let equals = words.text(end) == "=" || words.is(end, "to");
    if !equals || words.len() != end + 2 {
        return None;
    }
    let token = words.tokens[end + 1];
    let text = std::str::from_utf8(&words.sql[token.start..token.end]).ok()?;
    let value = match token.kind {
        TokenKind::String => text.strip_prefix('\'')?.strip_suffix('\'').filter(|inner| !inner.contains(['\'', '\\']))?.to_owned(),
        TokenKind::Word | TokenKind::QuotedName => words.name(end + 1)?.as_str().to_owned(),
        TokenKind::Number => text.to_owned(),
        _ => return None,
    };
    Some(Setting { name, local, value })
}

fn set(judge: &mut Judge<'_>, words: Words<'_>) -> Described {
    let local = words.is(1, "local") && !names_parameter(words, 1);
    let at = after_scope(words);
    let special = !names_parameter(words, at);
    let characteristics = words.is(at, "session") && words.is(at + 1, "characteristics") && words.is(at + 2, "as");
    if special && (words.is(at, "transaction") || characteristics) {
        return set_transaction(judge, words, at, characteristics, local);
    }
    if special && at == 1 && words.is(at, "constraints") {
        return utility(judge, "set_constraints", "SET CONSTRAINTS");
    }
    let (name, value): (Arc<str>, usize) = match (words.word(at).as_str(), words.word(at + 1).as_str()) {
        ("time", "zone") if special => ("timezone".into(), at + 2),
        ("session", "authorization") if special => ("session_authorization".into(), at + 2),
        ("xml", "option") if special => ("xmloption".into(), at + 2),
        ("names", _) if special => ("client_encoding".into(), at + 1),
        ("role", _) if special => ("role".into(), at + 1),
        ("schema", _) if special && words.kind(at + 1) == Some(TokenKind::String) => ("search_path".into(), at + 1),
        ("seed", _) if special => ("seed".into(), at + 1),
        _ => match setting_name(words, at) {
            Some((name, end)) => (name, end + 1),
            None => {
                judge.write("unparsed", "SET");
                judge.effect(Effect::SetUnknown);
                return (Kind::Utility, "SET");
            }
        },
    };
    if &*name == "seed" {
        judge.write("session_state", "seed");
        judge.pin(PinReason::Setseed);
    }
    if &*name == "transaction_isolation" || &*name == "transaction_read_only" {
        judge.write("set_transaction", &name);
    }
    let to = if words.is(value, "default") || (words.is(value, "local") && &*name == "timezone") {
        SetTo::Default
    } else if &*name == "role" && words.is(value, "none") {
        SetTo::NoRole
    } else if words.is(value - 1, "from") && words.is(value, "current") {
        SetTo::Current
    } else {
        match setting(words).filter(|_| own_parameter(&name)) {
            Some(Setting { value, .. }) => SetTo::Plain(value.into()),
            None => SetTo::Other,
        }
    };
    judge.effect(Effect::Set { name, local, to });
    (Kind::Utility, "SET")
}

/// Whether a parameter is the router's own.
pub(crate) fn own_parameter(name: &str) -> bool {
    const PREFIX: &str = "switchyard.";
    name.len() > PREFIX.len() && name.as_bytes()[..PREFIX.len()].eq_ignore_ascii_case(PREFIX.as_bytes())
}

/// A setting's name is a few names of at most 63 bytes; a longer one is left to the server, so that verdicts stay small.
const SETTING_NAME_BYTES: usize = 256;

/// A setting's name, qualified or not, in lower case, and the place behind it.
fn setting_name(words: Words<'_>, at: usize) -> Option<(Arc<str>, usize)> {
    // One that isn't UTF-8 is read as none.
    let part = |at: usize| words.name(at).map(|name| name.as_str().to_ascii_lowercase()).filter(|name| !name.is_empty());
    let mut name = part(at)?;
    let mut end = at + 1;
    while words.kind(end) == Some(TokenKind::Dot) && name.len() <= SETTING_NAME_BYTES {
        name.push('.');
        name.push_str(&part(end + 1)?);
        end += 2;
    }
    (1..=SETTING_NAME_BYTES).contains(&name.len()).then(|| (name.into(), end))
}

/// `SET TRANSACTION ...` and `SET SESSION CHARACTERISTICS AS TRANSACTION ...`, from `at` on.
fn set_transaction(judge: &mut Judge<'_>, words: Words<'_>, at: usize, characteristics: bool, local: bool) -> Described {
    if has_word(words, "snapshot") {
        judge.write("snapshot", "SET TRANSACTION SNAPSHOT");
        judge.effect(Effect::SetSnapshot);
        return (Kind::Utility, "SET");
    }
    let first = if characteristics { at + 4 } else { at + 1 };
    let modes = transaction_modes(words, first);
    if characteristics && local {
        // The session's defaults, for the transaction.
        let default = |name: &str| Effect::Set { name: name.into(), local, to: SetTo::Other };
        if modes.read_only.is_some() {
            judge.effect(default("default_transaction_read_only"));
        }
        if modes.repeatable_read.is_some() {
            judge.effect(default("default_transaction_isolation"));
        }
        if modes.deferrable.is_some() {
            judge.effect(default("default_transaction_deferrable"));
        }
    } else {
        if !characteristics {
            judge_modes(judge, modes);
        }
        judge.effect(Effect::SetTransaction { modes, session: characteristics });
    }
    let named = !characteristics || words.is(at + 3, "transaction");
    if !named || words.len() <= first || !well_formed_modes(words, first) {
        malformed(judge, "SET TRANSACTION");
    }
    (Kind::Utility, "SET")
}

fn reset(judge: &mut Judge<'_>, words: Words<'_>) -> Described {
    let effect = match (words.word(1).as_str(), words.word(2).as_str()) {
        ("all", "") if words.len() == 2 => Effect::ResetAll,
        ("time", "zone") => Effect::Reset { name: "timezone".into() },
        ("transaction", "isolation") => Effect::Reset { name: "transaction_isolation".into() },
        ("session", "authorization") => Effect::Reset { name: "session_authorization".into() },
        _ => match setting_name(words, 1) {
            Some((name, _)) => Effect::Reset { name },
            None => {
                judge.write("unparsed", "RESET");
                Effect::SetUnknown
            }
        },
    };
    judge.effect(effect);
    (Kind::Utility, "RESET")
}

fn discard(judge: &mut Judge<'_>, words: Words<'_>) -> Described {
    let (effect, command) = match words.word(1).as_str() {
        "all" => (Effect::DiscardAll, "DISCARD ALL"),
        "plans" => (Effect::DiscardPlans, "DISCARD PLANS"),
        "sequences" => (Effect::DiscardSequences, "DISCARD SEQUENCES"),
        "temp" | "temporary" => (Effect::DiscardTemp, "DISCARD TEMP"),
        _ => {
            judge.write("unparsed", "DISCARD");
            return (Kind::Unknown, "DISCARD");
        }
    };
    judge.effect(effect);
    (Kind::Utility, command)
}

fn prepare(judge: &mut Judge<'_>, words: Words<'_>) -> Described {
    if words.is(1, "transaction") && words.kind(2) == Some(TokenKind::String) {
        judge.effect(Effect::PrepareTransaction);
        return utility(judge, "two_phase", "PREPARE TRANSACTION");
    }
    let plain = query_behind_as(words, 2).is_some_and(|at| judge.has_no_effects(words.from(at)));
    judge.effect(Effect::Prepare { name: name_at(words, 1), plain });
    judge.pin(PinReason::SqlPrepare);
    utility(judge, "sql_prepare", "PREPARE")
}

fn execute(judge: &mut Judge<'_>, words: Words<'_>) -> Described {
    judge.effect(Effect::Execute { name: name_at(words, 1) });
    // What it is given is computed.
    query::effects(judge, words.from(2));
    utility(judge, "execute", "EXECUTE")
}

fn deallocate(judge: &mut Judge<'_>, words: Words<'_>) -> Described {
    let at = if words.is(1, "prepare") && words.len() > 2 { 2 } else { 1 };
    if words.is(at, "all") {
        judge.effect(Effect::DeallocateAll);
        return (Kind::Utility, "DEALLOCATE ALL");
    }
    judge.effect(Effect::Deallocate { name: name_at(words, at) });
    (Kind::Utility, "DEALLOCATE")
}

fn declare(judge: &mut Judge<'_>, words: Words<'_>) -> Described {
    let query_at = (0..words.len()).find(|at| words.is(*at, "for")).unwrap_or(words.len());
    let holds = (1..query_at).any(|at| words.is(at, "hold") && words.is(at - 1, "with"));
    if holds {
        judge.pin(PinReason::WithHoldCursor);
        judge.effect(Effect::HoldCursor { name: name_at(words, 1) });
    }
    query::effects(judge, words.from(query_at + 1));
    utility(judge, "cursor", "DECLARE CURSOR")
}

/// `COPY name [(columns)] TO|FROM ...` and `COPY (query) TO ...`.
fn copy(judge: &mut Judge<'_>, words: Words<'_>) -> Described {
    let close = matching_paren(words, 1);
    if words.kind(1) == Some(TokenKind::OpenParen) {
        let Some(close) = close else {
            judge.write("unparsed", "COPY");
            return (Kind::Unknown, "COPY");
        };
        let inner = Words { sql: words.sql, tokens: &words.tokens[2..close] };
        let (_, command) = wrapped(judge, inner);
        copy_target(judge, words, close + 1);
        return (Kind::Copy, if command.is_empty() { "COPY" } else { command });
    }
    let at = if words.is(1, "binary") { 2 } else { 1 };
    let (schema, name, mut end) = query::qualified_name(words, at);
    if words.kind(end) == Some(TokenKind::OpenParen) {
        end = (end..words.len()).find(|at| words.kind(*at) == Some(TokenKind::CloseParen)).map_or(end, |close| close + 1);
    }
    if words.is(end, "from") {
        judge.write("data_change", "COPY FROM");
        if words.is(end + 1, "stdin") || words.is(end + 1, "stdout") {
            judge.effect(Effect::CopyIn);
        }
        if let Some(condition) = (end + 1..words.len()).find(|at| words.is(*at, "where")) {
            query::effects(judge, words.from(condition + 1));
        }
        return (Kind::Copy, "COPY FROM");
    }
    judge.at_least(Class::Read);
    match name {
        Some(name) => query::relation(judge, schema.as_ref().map(|schema| schema.as_str()), name.as_str(), false),
        None => judge.write("unparsed", &words.text(at)),
    }
    copy_target(judge, words, end);
    (Kind::Copy, "COPY")
}

fn copy_target(judge: &mut Judge<'_>, words: Words<'_>, at: usize) {
    if !(words.is(at, "to") && (words.is(at + 1, "stdout") || words.is(at + 1, "stdin"))) {
        judge.write("server_file", &words.text(at + 1));
    }
}

/// The place of the parenthesis that closes the one at `open`.
fn matching_paren(words: Words<'_>, open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for at in open..words.len() {
        match words.kind(at) {
            Some(TokenKind::OpenParen) => depth += 1,
            Some(TokenKind::CloseParen) => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn explain(judge: &mut Judge<'_>, words: Words<'_>) -> Described {
    let mut at = 1;
    let options = words.kind(1) == Some(TokenKind::OpenParen)
        && !["select", "values", "table", "with"].iter().any(|word| words.is(2, word))
        && words.kind(2) != Some(TokenKind::OpenParen);
    if options {
        at = matching_paren(words, 1).map_or(words.len(), |close| close + 1);
    } else {
        while ["analyze", "analyse", "verbose"].iter().any(|word| words.is(at, word)) {
            at += 1;
        }
    }
    // EXPLAIN itself is never refused, only what it runs.
    let (_, command) = wrapped(judge, words.from(at));
    (Kind::Utility, command)
}

/// A statement within COPY or EXPLAIN: a query is judged, anything else is a write whether it runs or not.
fn wrapped(judge: &mut Judge<'_>, words: Words<'_>) -> Described {
    let first = (0..words.len()).find(|at| words.kind(*at) != Some(TokenKind::OpenParen)).unwrap_or(0);
    let word = words.word(first);
    match word.as_str() {
        "select" | "values" | "table" | "with" => query::judge(judge, words),
        "insert" => data(judge, words, Kind::Insert, "INSERT"),
        "update" => data(judge, words, Kind::Update, "UPDATE"),
        "delete" => data(judge, words, Kind::Delete, "DELETE"),
        "merge" => data(judge, words, Kind::Merge, "MERGE"),
        "execute" => execute(judge, words),
        "create" => create(judge, words),
        "declare" => declare(judge, words),
        "refresh" => ddl(judge, "REFRESH MATERIALIZED VIEW"),
        _ => {
            judge.write("unparsed", &words.text(first));
            (Kind::Unknown, "")
        }
    }
}

fn create(judge: &mut Judge<'_>, words: Words<'_>) -> Described {
    let temporary = (1..words.len().min(6)).any(|at| words.is(at, "temp") || words.is(at, "temporary"));
    let command = created(words);
    let routine = matches!(command, "CREATE FUNCTION" | "CREATE PROCEDURE");
    if temporary || (0..words.len().min(16)).any(|at| words.is(at, "pg_temp")) {
        match temp_table(words) {
            Some((name, on_commit_drop)) => {
                if !on_commit_drop {
                    judge.pin(PinReason::TempTable);
                }
                judge.effect(Effect::TempTable { name, on_commit_drop });
            }
            None => judge.pin(PinReason::TempTable),
        }
        if routine {
            // No facts know what it does.
            judge.pin(PinReason::UserCode);
        }
    }
    if routine {
        names_settings(judge, words);
    }
    alone(judge, words);
    let described = ddl(judge, command);
    // These run a query, whose calls may change the session.
    if matches!(command, "CREATE TABLE AS" | "CREATE MATERIALIZED VIEW")
        && let Some(at) = query_behind_as(words, 1)
    {
        if words.is(at, "execute") {
            execute(judge, words.from(at));
        } else {
            query::effects(judge, words.from(at));
        }
    }
    described
}

/// The custom settings that the SET clauses of CREATE FUNCTION, ALTER ROLE and their kin name: to see whether they may be set, the server makes
/// them known in its session (`validate_option_array_item`).
fn names_settings(judge: &mut Judge<'_>, words: Words<'_>) {
    let mut told = 0;
    for at in (2..words.len()).filter(|at| words.is(*at, "set") || words.is(*at, "reset")) {
        // Of all that the role or the database has, nobody tells the names.
        let all = words.is(at, "reset") && words.is(at + 1, "all");
        match setting_name(words, at + 1).filter(|_| !all) {
            Some((name, _)) if !name.contains('.') => {}
            Some((name, _)) if told < SETTINGS_MAX => {
                told += 1;
                judge.effect(Effect::Set { name, local: true, to: SetTo::Other });
            }
            None if !all && !matches!(words.kind(at + 1), Some(TokenKind::Word | TokenKind::QuotedName | TokenKind::UnicodeName)) => {}
            _ => judge.effect(Effect::SetUnknown),
        }
    }
}

/// SET clauses of one statement that are told, so that verdicts stay small.
const SETTINGS_MAX: usize = 16;

/// The name of `CREATE [LOCAL|GLOBAL] TEMP TABLE [IF NOT EXISTS] name`, and whether it is gone with its transaction. None for what else is temporary.
fn temp_table(words: Words<'_>) -> Option<(Arc<str>, bool)> {
    let at = (1..4).find(|at| words.is(*at, "table"))?;
    let exists = words.is(at + 1, "if") && words.is(at + 2, "not") && words.is(at + 3, "exists");
    let at = if exists { at + 4 } else { at + 1 };
    let (schema, name, end) = query::qualified_name(words, at);
    if schema.is_some_and(|schema| schema.as_str() != "pg_temp") {
        return None;
    }
    let drop = |at: usize| words.is(at, "on") && words.is(at + 1, "commit") && words.is(at + 2, "drop");
    // Behind AS is a query.
    let until = (end..words.len()).find(|at| words.is(*at, "as")).unwrap_or(words.len());
    Some((Arc::from(name?.as_str()), !exists && (end..until).any(drop)))
}

/// Names of one DROP TABLE that are told, so that verdicts stay small.
const DROPPED_NAMES_MAX: usize = 16;

/// The tables of a DROP TABLE: by their names those that may be temporary ones, without a schema or of `pg_temp`; the others by `""`.
fn dropped_tables(judge: &mut Judge<'_>, words: Words<'_>) {
    if !words.is(1, "table") {
        return;
    }
    let mut at = if words.is(2, "if") && words.is(3, "exists") { 4 } else { 2 };
    for _ in 0..DROPPED_NAMES_MAX {
        let (schema, name, end) = query::qualified_name(words, at);
        let temporary = name.filter(|_| schema.is_none_or(|schema| schema.as_str() == "pg_temp"));
        judge.effect(Effect::DropTable { name: Arc::from(temporary.as_ref().map_or("", |name| name.as_str())) });
        if words.kind(end) != Some(TokenKind::Comma) {
            return;
        }
        at = end + 1;
    }
    judge.effect(Effect::DropTable { name: Arc::from("") });
}

/// The database that the statement wants for itself.
fn alone(judge: &mut Judge<'_>, words: Words<'_>) {
    if !words.is(1, "database") {
        return;
    }
    let moves = |at: usize| (words.is(at, "rename") && words.is(at + 1, "to")) || (words.is(at, "set") && words.is(at + 1, "tablespace"));
    let database = match words.word(0).as_str() {
        "drop" => name_at(words, if words.is(2, "if") { 4 } else { 2 }),
        "alter" if moves(3) => name_at(words, 2),
        "create" => match (3..words.len()).find(|at| words.is(*at, "template")) {
            Some(at) => name_at(words, if words.kind(at + 1) == Some(TokenKind::Operator) { at + 2 } else { at + 1 }),
            None => "template1".into(),
        },
        _ => return,
    };
    judge.effect(Effect::AloneIn { database });
}

/// What CREATE creates: the first word that says so, behind OR REPLACE, UNIQUE, TEMPORARY and so on.
fn created(words: Words<'_>) -> &'static str {
    let at = (1..words.len())
        .find(|at| {
            let word = words.word(*at);
            !matches!(
                word.as_str(),
                "or" | "replace"
                    | "global"
                    | "local"
                    | "temp"
                    | "temporary"
                    | "unlogged"
                    | "unique"
                    | "recursive"
                    | "constraint"
                    | "trusted"
                    | "procedural"
                    | "default"
            )
        })
        .unwrap_or(1);
    let word = words.word(at);
    match word.as_str() {
        "table" if created_as(words, at) => "CREATE TABLE AS",
        "foreign" if words.is(at + 1, "data") => "CREATE FOREIGN DATA WRAPPER",
        "user" if words.is(at + 1, "mapping") => "CREATE USER MAPPING",
        "user" | "group" | "role" => "CREATE ROLE",
        "operator" if words.is(at + 1, "class") => "CREATE OPERATOR CLASS",
        "operator" if words.is(at + 1, "family") => "CREATE OPERATOR FAMILY",
        "text" => match words.word(at + 2).as_str() {
            "configuration" => "CREATE TEXT SEARCH CONFIGURATION",
            "dictionary" => "CREATE TEXT SEARCH DICTIONARY",
            "parser" => "CREATE TEXT SEARCH PARSER",
            _ => "CREATE TEXT SEARCH TEMPLATE",
        },
        word => CREATED.iter().find(|(key, _)| *key == word).map_or("CREATE", |(_, command)| command),
    }
}

/// Whether a CREATE TABLE takes its rows from a query: `AS` outside parentheses (GENERATED ... AS stands within them).
fn created_as(words: Words<'_>, at: usize) -> bool {
    query_behind_as(words, at).is_some()
}

/// The place behind the first `AS` outside parentheses.
fn query_behind_as(words: Words<'_>, from: usize) -> Option<usize> {
    let mut depth = 0usize;
    let found = (from..words.len()).find(|at| {
        let at = *at;
        match words.kind(at) {
            Some(TokenKind::OpenParen) => depth += 1,
            Some(TokenKind::CloseParen) => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && words.is(at, "as")
    });
    found.map(|at| at + 1)
}

static CREATED: [(&str, &str); 30] = [
    ("access", "CREATE ACCESS METHOD"),
    ("aggregate", "CREATE AGGREGATE"),
    ("cast", "CREATE CAST"),
    ("collation", "CREATE COLLATION"),
    ("conversion", "CREATE CONVERSION"),
    ("database", "CREATE DATABASE"),
    ("domain", "CREATE DOMAIN"),
    ("event", "CREATE EVENT TRIGGER"),
    ("extension", "CREATE EXTENSION"),
    ("foreign", "CREATE FOREIGN TABLE"),
    ("function", "CREATE FUNCTION"),
    ("index", "CREATE INDEX"),
    ("language", "CREATE LANGUAGE"),
    ("materialized", "CREATE MATERIALIZED VIEW"),
    ("operator", "CREATE OPERATOR"),
    ("policy", "CREATE POLICY"),
    ("procedure", "CREATE PROCEDURE"),
    ("publication", "CREATE PUBLICATION"),
    ("rule", "CREATE RULE"),
    ("schema", "CREATE SCHEMA"),
    ("sequence", "CREATE SEQUENCE"),
    ("server", "CREATE SERVER"),
    ("statistics", "CREATE STATISTICS"),
    ("subscription", "CREATE SUBSCRIPTION"),
    ("table", "CREATE TABLE"),
    ("tablespace", "CREATE TABLESPACE"),
    ("transform", "CREATE TRANSFORM"),
    ("trigger", "CREATE TRIGGER"),
    ("type", "CREATE TYPE"),
    ("view", "CREATE VIEW"),
];

/// ALTER's and DROP's commands by their second and, where it tells, third word.
fn alter_or_drop(words: Words<'_>, table: &'static [(&'static str, &'static str, &'static str)]) -> &'static str {
    let (second, third) = (words.word(1), words.word(2));
    let key = if second.as_str() == "text" { words.word(3) } else { third };
    table
        .iter()
        .find(|(first, next, _)| *first == second.as_str() && (next.is_empty() || *next == key.as_str()))
        .map_or(table[0].2, |(_, _, command)| command)
}

macro_rules! commands {
    ($verb:literal: $(($first:literal, $next:literal, $object:literal)),* $(,)?) => {
        [("", "", $verb), $(($first, $next, concat!($verb, " ", $object))),*]
    };
}

macro_rules! both {
    ($name:ident, $verb:literal) => {
        static $name: [(&str, &str, &str); 46] = commands!($verb:
            ("access", "", "ACCESS METHOD"),
            ("aggregate", "", "AGGREGATE"),
            ("cast", "", "CAST"),
            ("collation", "", "COLLATION"),
            ("conversion", "", "CONVERSION"),
            ("database", "", "DATABASE"),
            ("default", "", "DEFAULT PRIVILEGES"),
            ("domain", "", "DOMAIN"),
            ("event", "", "EVENT TRIGGER"),
            ("extension", "", "EXTENSION"),
            ("foreign", "data", "FOREIGN DATA WRAPPER"),
            ("foreign", "", "FOREIGN TABLE"),
            ("function", "", "FUNCTION"),
            ("group", "", "ROLE"),
            ("index", "", "INDEX"),
            ("language", "", "LANGUAGE"),
            ("large", "", "LARGE OBJECT"),
            ("materialized", "", "MATERIALIZED VIEW"),
            ("operator", "class", "OPERATOR CLASS"),
            ("operator", "family", "OPERATOR FAMILY"),
            ("operator", "", "OPERATOR"),
            ("policy", "", "POLICY"),
            ("procedure", "", "PROCEDURE"),
            ("publication", "", "PUBLICATION"),
            ("role", "", "ROLE"),
            ("routine", "", "ROUTINE"),
            ("rule", "", "RULE"),
            ("schema", "", "SCHEMA"),
            ("sequence", "", "SEQUENCE"),
            ("server", "", "SERVER"),
            ("statistics", "", "STATISTICS"),
            ("subscription", "", "SUBSCRIPTION"),
            ("system", "", "SYSTEM"),
            ("table", "", "TABLE"),
            ("tablespace", "", "TABLESPACE"),
            ("text", "configuration", "TEXT SEARCH CONFIGURATION"),
            ("text", "dictionary", "TEXT SEARCH DICTIONARY"),
            ("text", "parser", "TEXT SEARCH PARSER"),
            ("text", "", "TEXT SEARCH TEMPLATE"),
            ("transform", "", "TRANSFORM"),
            ("trigger", "", "TRIGGER"),
            ("type", "", "TYPE"),
            ("user", "mapping", "USER MAPPING"),
            ("user", "", "ROLE"),
            ("view", "", "VIEW"),
        );
    };
}

both!(ALTERED, "ALTER");
both!(DROPPED, "DROP");
