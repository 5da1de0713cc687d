//! Reads a database's catalogs into facts, in one transaction, row by row.
//!
//! Invariant: all of it or nothing. What is read is bounded by what the queries leave out (long bodies come as none), never by what a client
//! sends. Everything is qualified, and `search_path` is `pg_catalog`, as a cast or an operator of somebody's mustn't get into the way.

use std::borrow::Cow;

use futures_util::{TryStreamExt, pin_mut};
use switchyard_core::sql::Facts;
use switchyard_core::sql::bodies::Language;
use switchyard_core::sql::reach::{BODY_BYTES_MAX, Catalog, FIRST_NORMAL_OID, Function, Object, Relation, Volatility};
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, Row};

/// A view's or policy's expression is read up to this size, in bytes; with a longer one it counts as a write.
const TREE_BYTES_MAX: usize = 1024 * 1024;

/// Why there are no facts.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
}

/// tokio-postgres prints "db error" and leaves the rest to its source.
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => error.to_string(),
    }
}

/// A value that is text. What isn't UTF-8 (in databases of encoding SQL_ASCII) is changed, so that it matches no name.
struct Text<'a>(Cow<'a, str>);

impl<'a> FromSql<'a> for Text<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Text<'a>, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Text(String::from_utf8_lossy(raw)))
    }

    fn accepts(kind: &Type) -> bool {
        matches!(*kind, Type::TEXT | Type::NAME | Type::VARCHAR)
    }
}

fn text(row: &Row, column: usize) -> Result<Cow<'_, str>, tokio_postgres::Error> {
    row.try_get::<_, Text<'_>>(column).map(|text| text.0)
}

fn optional(row: &Row, column: usize) -> Result<Option<Cow<'_, str>>, tokio_postgres::Error> {
    row.try_get::<_, Option<Text<'_>>>(column).map(|text| text.map(|text| text.0))
}

fn oid(row: &Row, column: usize) -> Result<u32, tokio_postgres::Error> {
    row.try_get(column)
}

/// A `"char"`.
fn letter(row: &Row, column: usize) -> Result<u8, tokio_postgres::Error> {
    row.try_get::<_, i8>(column).map(|letter| letter as u8)
}

async fn each(
    client: &Client,
    query: &str,
    mut take: impl FnMut(&Row) -> Result<(), tokio_postgres::Error>,
) -> Result<(), tokio_postgres::Error> {
    let rows = client.query_raw(query, std::iter::empty::<i32>()).await?;
    pin_mut!(rows);
    while let Some(row) = rows.try_next().await? {
        take(&row)?;
    }
    Ok(())
}

/// What changes whenever facts may: the sum of a hash per row, of the rows that people made. Not `xmin` of `pg_class`, which TRUNCATE and
/// REFRESH change as well. Temporary objects are left out, as only the session sees them that made them.
const FINGERPRINT: &str = "\
SELECT pg_catalog.concat_ws(' ',
  (SELECT sum(hashint8extended(xmin::text::int8, oid::int8)) FROM pg_catalog.pg_proc WHERE oid >= 16384),
  (SELECT sum(hashtextextended(concat(relname, ' ', relkind, relpersistence, relrowsecurity, CASE WHEN relkind = 'c' THEN relnatts END),
                               (oid::int8 << 32) + relnamespace::int8))
     FROM pg_catalog.pg_class
    WHERE oid >= 16384 AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c') AND relpersistence <> 't'),
  (SELECT sum(hashint8extended(xmin::text::int8, oid::int8)) FROM pg_catalog.pg_rewrite WHERE oid >= 16384),
  (SELECT sum(hashint8extended(xmin::text::int8, oid::int8)) FROM pg_catalog.pg_policy),
  (SELECT sum(hashint8extended(xmin::text::int8, oid::int8)) FROM pg_catalog.pg_operator WHERE oid >= 16384),
  (SELECT sum(hashint8extended(xmin::text::int8, oid::int8)) FROM pg_catalog.pg_cast WHERE oid >= 16384),
  (SELECT sum(hashint8extended(xmin::text::int8, oid::int8)) FROM pg_catalog.pg_amproc WHERE oid >= 16384),
  (SELECT sum(hashint8extended(xmin::text::int8, oid::int8)) FROM pg_catalog.pg_constraint WHERE contypid <> 0 AND oid >= 16384),
  (SELECT sum(hashint8extended(xmin::text::int8, oid::int8)) FROM pg_catalog.pg_type
    WHERE oid >= 16384 AND typtype <> 'c' AND typcategory <> 'A'),
  (SELECT sum(hashint8extended(xmin::text::int8, oid::int8)) FROM pg_catalog.pg_event_trigger),
  (SELECT sum(hashint8extended(xmin::text::int8, oid::int8)) FROM pg_catalog.pg_amop WHERE oid >= 16384),
  (SELECT sum(hashint8extended(xmin::text::int8, oid::int8)) FROM pg_catalog.pg_namespace
    WHERE oid >= 16384 AND nspname !~ '^pg_(toast_)?temp_'),
  (SELECT sum(hashint8extended(xmin::text::int8, oid::int8)) FROM pg_catalog.pg_extension),
  (SELECT sum(hashint8extended(inhrelid::int8, inhparent::int8)) FROM pg_catalog.pg_inherits),
  (WITH lasting AS (SELECT oid FROM pg_catalog.pg_class WHERE oid >= 16384 AND relpersistence <> 't')
   SELECT concat_ws(' ',
     (SELECT sum(hashint8extended(xmin::text::int8, oid::int8)) FROM pg_catalog.pg_trigger
       WHERE NOT tgisinternal AND tgrelid IN (SELECT oid FROM lasting)),
     (SELECT sum(hashint8extended(xmin::text::int8, oid::int8)) FROM pg_catalog.pg_constraint WHERE conrelid IN (SELECT oid FROM lasting)),
     (SELECT sum(hashint8extended(xmin::text::int8, oid::int8)) FROM pg_catalog.pg_attrdef WHERE adrelid IN (SELECT oid FROM lasting)),
     (SELECT sum(hashint8extended(indexrelid::int8, indrelid::int8)) FROM pg_catalog.pg_index
       WHERE (indexprs IS NOT NULL OR indpred IS NOT NULL) AND indrelid IN (SELECT oid FROM lasting)),
     (SELECT sum(hashint8extended(indexrelid::int8, c.opcfamily::int8))
        FROM pg_catalog.pg_index i JOIN pg_catalog.pg_opclass c ON c.oid >= 16384 AND c.oid = ANY (i.indclass::oid[])
       WHERE indrelid IN (SELECT oid FROM lasting)),
     (SELECT sum(hashint8extended(xmin::text::int8, oid::int8)) FROM pg_catalog.pg_statistic_ext WHERE stxrelid IN (SELECT oid FROM lasting)),
     (SELECT sum(hashint8extended(atttypid::int8, (attrelid::int8 << 16) + attnum)) FROM pg_catalog.pg_attribute
       WHERE attnum > 0 AND atttypid >= 16384 AND NOT attisdropped AND attrelid IN (SELECT oid FROM lasting)))))";

const BUILTIN_FUNCTIONS: &str = "\
SELECT p.oid, n.nspname, p.proname
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
 WHERE p.oid < 16384";

/// Columns: oid, schema, name, aggregate, volatility, language, extension, internal source, hidden by a built-in one, can be called with one
/// argument, its own `search_path` puts something before `pg_catalog`, the parameters with a prefix that it sets.
const FUNCTIONS: &str = "\
SELECT p.oid, n.nspname, p.proname, p.prokind = 'a', p.provolatile, l.lanname, e.extname,
       CASE WHEN l.lanname = 'internal' THEN p.prosrc END,
       p.pronargdefaults = 0 AND p.provariadic = 0 AND
         EXISTS (SELECT FROM pg_catalog.pg_proc b
                  WHERE b.proname = p.proname AND b.proargtypes = p.proargtypes AND b.pronamespace = 'pg_catalog'::regnamespace
                    AND b.oid < 16384),
       p.pronargs >= 1 AND p.pronargs - p.pronargdefaults <= 1,
       EXISTS (SELECT FROM unnest(p.proconfig) s WHERE s ~ '^search_path=.*,.*pg_catalog'),
       ARRAY(SELECT split_part(s, '=', 1) FROM unnest(p.proconfig) s WHERE s ~ '^[^=]*[.]')
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_catalog.pg_language l ON l.oid = p.prolang
  LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
                                  AND d.refclassid = 'pg_catalog.pg_extension'::regclass
  LEFT JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
 WHERE p.oid >= 16384 AND p.prokind <> 'p'";

/// What else counts for what is left behind: the operators that sort for aggregates, and the types of their states.
const AGGREGATE_PARTS: &str = "\
SELECT aggfnoid::oid, aggsortop, aggtranstype, aggmtranstype FROM pg_catalog.pg_aggregate WHERE aggfnoid::oid >= 16384";

const AGGREGATES: &str = "\
SELECT aggfnoid::oid, f
  FROM pg_catalog.pg_aggregate,
       unnest(ARRAY[aggtransfn, aggfinalfn, aggcombinefn, aggserialfn, aggdeserialfn, aggmtransfn, aggminvtransfn, aggmfinalfn]::oid[]) f
 WHERE aggfnoid::oid >= 16384 AND f <> 0";

/// Temporary relations are left out: they are seen by the session that made them, which stays on its server, and their names mustn't keep
/// everybody else's tables from the replicas.
const RELATIONS: &str = "\
SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't'";

/// Foreign tables of wrappers that aren't known to set nothing.
const FOREIGN: &str = "\
SELECT t.ftrelid
  FROM pg_catalog.pg_foreign_table t
  JOIN pg_catalog.pg_foreign_server s ON s.oid = t.ftserver
  JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw
  LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = w.fdwhandler AND d.deptype = 'e'
                                  AND d.refclassid = 'pg_catalog.pg_extension'::regclass
  LEFT JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
 WHERE w.fdwhandler <> 0 AND e.extname IS DISTINCT FROM 'postgres_fdw' AND e.extname IS DISTINCT FROM 'file_fdw'";

const INHERITS: &str = "\
SELECT i.inhparent, i.inhrelid
  FROM pg_catalog.pg_inherits i
  JOIN pg_catalog.pg_class p ON p.oid = i.inhparent AND p.relkind IN ('r', 'p', 'f') AND p.relpersistence <> 't'
  JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relpersistence <> 't'";

/// What makes a data change of a relation run code: triggers of people's functions, rules, and foreign keys of others that cascade.
const CHANGES: &str = "\
SELECT tgrelid, 'trigger' FROM pg_catalog.pg_trigger WHERE tgfoid >= 16384
UNION ALL SELECT ev_class, 'rule' FROM pg_catalog.pg_rewrite WHERE ev_type <> '1' AND oid >= 16384
UNION ALL SELECT confrelid, 'cascade' FROM pg_catalog.pg_constraint
           WHERE contype = 'f' AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd'))";

/// The functions that defaults, constraints, indexes and policies of relations call.
const CHANGE_FUNCTIONS: &str = "\
WITH calls AS (SELECT classid, objid, refobjid FROM pg_catalog.pg_depend
                WHERE refclassid = 'pg_catalog.pg_proc'::regclass AND refobjid >= 16384)
SELECT d.adrelid, c.refobjid FROM calls c JOIN pg_catalog.pg_attrdef d ON c.classid = 'pg_catalog.pg_attrdef'::regclass AND d.oid = c.objid
UNION ALL SELECT k.conrelid, c.refobjid FROM calls c JOIN pg_catalog.pg_constraint k
              ON c.classid = 'pg_catalog.pg_constraint'::regclass AND k.oid = c.objid WHERE k.conrelid <> 0
UNION ALL SELECT i.indrelid, c.refobjid FROM calls c JOIN pg_catalog.pg_index i
              ON c.classid = 'pg_catalog.pg_class'::regclass AND i.indexrelid = c.objid
UNION ALL SELECT p.polrelid, c.refobjid FROM calls c JOIN pg_catalog.pg_policy p
              ON c.classid = 'pg_catalog.pg_policy'::regclass AND p.oid = c.objid";

/// The types of columns: what is written is cast to them, and checked by their constraints.
const CHANGE_TYPES: &str = "\
SELECT DISTINCT a.attrelid, a.atttypid
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
 WHERE a.attnum > 0 AND NOT a.attisdropped AND c.oid >= 16384 AND c.relkind IN ('r', 'p', 'v', 'f') AND c.relpersistence <> 't'
   AND (a.atttypid >= 16384 OR a.atttypid IN (SELECT casttarget FROM pg_catalog.pg_cast WHERE castfunc::oid >= 16384))";

/// The types that people made of which no value comes about by itself: nothing built in becomes one of them without being told to, as a value
/// does that meets a domain, a row a composite type, and elements their array.
const OWN_TYPES: &str = "(SELECT oid FROM pg_catalog.pg_type WHERE oid >= 16384 AND typtype IN ('b', 'e', 'r') AND typelem = 0)";

/// Columns: oid, symbol, function, an operand's type where a value of it must be at hand for the operator to be meant: of two operands the other
/// one mustn't have a built-in operator with an unknown literal to look for in vain.
fn operators() -> String {
    format!(
        "WITH own AS {OWN_TYPES}
         SELECT o.oid, o.oprname, o.oprcode::oid,
                CASE WHEN o.oid < 16384 OR o.oprkind <> 'b' THEN NULL
                     WHEN o.oprleft IN (TABLE own) AND o.oprright IN (TABLE own) THEN o.oprleft
                     WHEN EXISTS (SELECT FROM pg_catalog.pg_operator b
                                   WHERE b.oid < 16384 AND b.oprname = o.oprname AND b.oprleft = b.oprright
                                     AND b.oprleft IN (o.oprleft, o.oprright))
                     THEN coalesce((SELECT own.oid FROM own WHERE own.oid = o.oprleft), (SELECT own.oid FROM own WHERE own.oid = o.oprright))
                END
           FROM pg_catalog.pg_operator o WHERE o.oprcode <> 0"
    )
}

/// What has values of a type: columns of relations, and parameters and results of functions. Columns: is a function, its oid, the type.
const HOLDERS: &str = "\
SELECT DISTINCT false, c.oid, a.atttypid
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
 WHERE a.atttypid >= 16384 AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'
UNION ALL
SELECT DISTINCT true, p.oid, t
  FROM pg_catalog.pg_proc p, unnest(p.proargtypes::oid[] || coalesce(p.proallargtypes, '{}') || p.prorettype) t
 WHERE p.oid >= 16384 AND p.prokind <> 'p' AND t >= 16384";

const TYPES: &str = "\
SELECT t.oid, t.typname
  FROM pg_catalog.pg_type t
 WHERE t.oid >= 16384 AND (t.typtype IN ('d', 'b', 'e', 'r', 'm')
    OR EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = t.typrelid AND c.relpersistence <> 't'))
    OR t.oid IN (SELECT casttarget FROM pg_catalog.pg_cast WHERE oid >= 16384)";

/// Domains and what they are over, arrays and their elements, composites and their attributes, ranges and what they range over.
const TYPE_PARTS: &str = "\
SELECT oid, typbasetype FROM pg_catalog.pg_type WHERE oid >= 16384 AND typbasetype <> 0
UNION ALL SELECT oid, typelem FROM pg_catalog.pg_type WHERE oid >= 16384 AND typelem <> 0
UNION ALL SELECT rngtypid, rngsubtype FROM pg_catalog.pg_range WHERE rngtypid >= 16384
UNION ALL SELECT c.reltype, a.atttypid
            FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
           WHERE a.attnum > 0 AND a.atttypid >= 16384 AND NOT a.attisdropped AND c.reltype <> 0 AND c.relpersistence <> 't'";

/// Columns: target, function (0: none is called), implicit, the source if it is a type of its own, the target if it is, the source.
fn casts() -> String {
    format!(
        "WITH own AS {OWN_TYPES}
         SELECT casttarget, castfunc::oid, castcontext = 'i',
                (SELECT own.oid FROM own WHERE own.oid = castsource), (SELECT own.oid FROM own WHERE own.oid = casttarget), castsource
           FROM pg_catalog.pg_cast WHERE oid >= 16384"
    )
}

/// What sorting, DISTINCT, GROUP BY and joins call without an operator's name, where it isn't in C. Columns: function, the type that it is for if
/// that is one of its own.
fn comparisons() -> String {
    format!(
        "WITH own AS {OWN_TYPES}
         SELECT DISTINCT p.oid,
                coalesce((SELECT own.oid FROM own WHERE own.oid = a.amproclefttype), (SELECT own.oid FROM own WHERE own.oid = a.amprocrighttype))
           FROM pg_catalog.pg_amproc a
           JOIN pg_catalog.pg_proc p ON p.oid = a.amproc::oid
           JOIN pg_catalog.pg_language l ON l.oid = p.prolang
          WHERE p.oid >= 16384 AND l.lanname NOT IN ('c', 'internal')"
    )
}

/// The functions of a type's own, and of a range's: input and output, canonical form, difference. With each multirange, its range.
fn type_functions(version_num: i32) -> String {
    let subscript = if version_num >= 140_000 { ", typsubscript" } else { "" };
    let multirange = if version_num >= 140_000 {
        "UNION ALL SELECT r.rngmultitypid, f FROM pg_catalog.pg_range r, unnest(ARRAY[r.rngcanonical, r.rngsubdiff]::oid[]) f
          WHERE r.rngtypid >= 16384 AND f <> 0"
    } else {
        ""
    };
    format!(
        "SELECT t.oid, f
           FROM pg_catalog.pg_type t,
                unnest(ARRAY[typinput, typoutput, typreceive, typsend, typmodin, typmodout, typanalyze{subscript}]::oid[]) f
          WHERE t.oid >= 16384 AND f >= 16384
         UNION ALL
         SELECT r.rngtypid, f FROM pg_catalog.pg_range r, unnest(ARRAY[r.rngcanonical, r.rngsubdiff]::oid[]) f
          WHERE r.rngtypid >= 16384 AND f <> 0
         {multirange}"
    )
}

/// What people put into operator families. Columns: family, operator or function, the type that it is for, is an operator.
const FAMILIES: &str = "\
SELECT amopfamily, amopopr, amoplefttype, true FROM pg_catalog.pg_amop WHERE amopopr >= 16384
UNION ALL SELECT amprocfamily, amproc::oid, amproclefttype, false FROM pg_catalog.pg_amproc WHERE amproc::oid >= 16384";

/// The operator families that the indexes of relations use, and that people made.
const INDEX_FAMILIES: &str = "\
SELECT DISTINCT i.indrelid, c.opcfamily
  FROM pg_catalog.pg_index i JOIN pg_catalog.pg_opclass c ON c.oid >= 16384 AND c.oid = ANY (i.indclass::oid[])";

/// Triggers that are on, with their functions and conditions.
const TRIGGERS: &str = "\
SELECT tgrelid, tgfoid, tgqual::text FROM pg_catalog.pg_trigger WHERE tgenabled <> 'D' AND (tgfoid >= 16384 OR tgqual IS NOT NULL)";

const EVENT_TRIGGERS: &str = "SELECT evtfoid FROM pg_catalog.pg_event_trigger WHERE evtenabled <> 'D'";

/// Foreign keys. Columns: the relation that has one, the one that it names, whether it changes rows, the operators that compare.
const FOREIGN_KEYS: &str = "\
SELECT conrelid, confrelid, confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd'),
       array(SELECT o FROM unnest(conpfeqop || conppeqop || conffeqop) o WHERE o >= 16384)
  FROM pg_catalog.pg_constraint WHERE contype = 'f'";

const EXCLUSIONS: &str = "\
SELECT conrelid, o FROM pg_catalog.pg_constraint, unnest(conexclop) o WHERE contype = 'x' AND o >= 16384";

/// Which object an OID of a query's first column names.
type Of = fn(u32) -> Object;

/// Expressions of relations that count for what is left behind alone, by what runs them.
fn traces(version_num: i32) -> [(String, Of); 10] {
    let short = |tree: &str| format!("CASE WHEN octet_length({tree}::text) <= {TREE_BYTES_MAX} THEN {tree}::text END");
    let domain_defaults = format!("SELECT oid, {} FROM pg_catalog.pg_type WHERE typdefaultbin IS NOT NULL", short("typdefaultbin"));
    let statistics = if version_num >= 140_000 { "stxexprs" } else { "NULL::text" };
    [
        (domain_defaults, Object::Type),
        (
            format!(
                "SELECT d.adrelid, {} FROM pg_catalog.pg_attrdef d JOIN pg_catalog.pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
                  WHERE a.attgenerated = ''",
                short("d.adbin")
            ),
            Object::Change,
        ),
        // The planner evaluates what is constant in the checks and indexes of what is read, and generated columns may be virtual.
        (
            format!(
                "SELECT d.adrelid, {} FROM pg_catalog.pg_attrdef d JOIN pg_catalog.pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
                  WHERE a.attgenerated <> ''",
                short("d.adbin")
            ),
            Object::Relation,
        ),
        (format!("SELECT conrelid, {} FROM pg_catalog.pg_constraint WHERE conrelid <> 0 AND conbin IS NOT NULL", short("conbin")), Object::Relation),
        (
            format!(
                "SELECT indrelid, {} FROM pg_catalog.pg_index, unnest(ARRAY[indexprs::text, indpred::text]) tree WHERE tree IS NOT NULL",
                short("tree")
            ),
            Object::Relation,
        ),
        (
            format!("SELECT stxrelid, {} FROM pg_catalog.pg_statistic_ext WHERE {statistics} IS NOT NULL", short(statistics)),
            Object::Relation,
        ),
        (
            format!(
                "SELECT p.polrelid, {} FROM pg_catalog.pg_policy p JOIN pg_catalog.pg_class c ON c.oid = p.polrelid,
                        unnest(ARRAY[p.polqual::text, p.polwithcheck::text]) tree
                  WHERE c.relrowsecurity AND tree IS NOT NULL",
                short("tree")
            ),
            Object::Relation,
        ),
        (
            format!("SELECT partrelid, {} FROM pg_catalog.pg_partitioned_table WHERE partexprs IS NOT NULL", short("partexprs")),
            Object::Key,
        ),
        // What a materialized view is made of runs when it is refreshed.
        (
            format!(
                "SELECT r.ev_class, {} FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
                  WHERE r.ev_type = '1' AND c.relkind = 'm'",
                short("r.ev_action")
            ),
            Object::Change,
        ),
        (
            format!(
                "SELECT r.ev_class, {} FROM pg_catalog.pg_rewrite r, unnest(ARRAY[r.ev_qual::text, r.ev_action::text]) tree
                  WHERE r.ev_type <> '1' AND r.oid >= 16384",
                short("tree")
            ),
            Object::Change,
        ),
    ]
}

/// Relations to which a write may do more than its transaction undoes: what isn't a plain table, has triggers or rules or columns of types that
/// people made (but enums), or calls their functions in its defaults, constraints, indexes and policies; tables of which such a one is a part, and
/// those whose foreign keys change others.
const OUTSIDE: &str = "\
WITH RECURSIVE suspect(oid) AS (
  SELECT c.oid FROM pg_catalog.pg_class c
   WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'
     AND (c.relkind NOT IN ('r', 'p') OR c.relhasrules
          OR EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal)
          OR EXISTS (SELECT FROM pg_catalog.pg_constraint f
                      WHERE f.contype = 'f' AND f.confrelid = c.oid AND (f.confdeltype IN ('c', 'n', 'd') OR f.confupdtype IN ('c', 'n', 'd')))
          OR EXISTS (SELECT FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
                      WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND t.oid >= 16384
                        AND t.typtype <> 'e' AND NOT (t.typcategory = 'A' AND EXISTS (SELECT FROM pg_catalog.pg_type e
                                                       WHERE e.oid = t.typelem AND e.typtype = 'e'))))
  UNION
  SELECT part.relation
    FROM (SELECT 'pg_catalog.pg_attrdef'::regclass AS catalog, oid, adrelid AS relation FROM pg_catalog.pg_attrdef
          UNION ALL SELECT 'pg_catalog.pg_constraint'::regclass, oid, conrelid FROM pg_catalog.pg_constraint WHERE conrelid <> 0
          UNION ALL SELECT 'pg_catalog.pg_class'::regclass, indexrelid, indrelid FROM pg_catalog.pg_index
          UNION ALL SELECT 'pg_catalog.pg_class'::regclass, partrelid, partrelid FROM pg_catalog.pg_partitioned_table
          UNION ALL SELECT 'pg_catalog.pg_policy'::regclass, oid, polrelid FROM pg_catalog.pg_policy) part
    JOIN pg_catalog.pg_depend d ON d.classid = part.catalog AND d.objid = part.oid
                               AND d.refclassid IN ('pg_catalog.pg_proc'::regclass, 'pg_catalog.pg_operator'::regclass,
                                                    'pg_catalog.pg_opclass'::regclass, 'pg_catalog.pg_type'::regclass)
                               AND d.refobjid >= 16384
),
tainted(oid) AS (
  SELECT oid FROM suspect
  UNION
  SELECT i.inhparent FROM pg_catalog.pg_inherits i JOIN tainted t ON t.oid = i.inhrelid
)
SELECT DISTINCT c.relname FROM tainted t JOIN pg_catalog.pg_class c ON c.oid = t.oid WHERE c.oid >= 16384";

fn views() -> String {
    format!(
        "SELECT r.ev_class, CASE WHEN octet_length(r.ev_action::text) <= {TREE_BYTES_MAX} THEN r.ev_action::text END
           FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
          WHERE r.ev_type = '1' AND c.relkind = 'v' AND c.oid >= 16384 AND c.relpersistence <> 't'"
    )
}

fn policies() -> String {
    format!(
        "SELECT p.polrelid, CASE WHEN octet_length(p.polqual::text) <= {TREE_BYTES_MAX} THEN p.polqual::text END
           FROM pg_catalog.pg_policy p JOIN pg_catalog.pg_class c ON c.oid = p.polrelid
          WHERE c.relrowsecurity AND p.polcmd IN ('r', '*') AND p.polqual IS NOT NULL AND c.relpersistence <> 't'"
    )
}

fn domains() -> String {
    format!(
        "SELECT contypid, CASE WHEN octet_length(conbin::text) <= {TREE_BYTES_MAX} THEN conbin::text END
           FROM pg_catalog.pg_constraint WHERE contypid >= 16384 AND conbin IS NOT NULL"
    )
}

fn defaults() -> String {
    format!(
        "SELECT oid, CASE WHEN octet_length(proargdefaults::text) <= {TREE_BYTES_MAX} THEN proargdefaults::text END
           FROM pg_catalog.pg_proc WHERE oid >= 16384 AND proargdefaults IS NOT NULL AND prokind <> 'p'"
    )
}

/// Columns: oid, is PL/pgSQL, text, standard SQL (before PostgreSQL 14 there is none).
fn bodies(version_num: i32) -> String {
    let standard = if version_num >= 140_000 { "p.prosqlbody::text" } else { "NULL::text" };
    format!(
        "SELECT p.oid, l.lanname = 'plpgsql',
                CASE WHEN octet_length(p.prosrc) <= {BODY_BYTES_MAX} THEN p.prosrc END,
                CASE WHEN octet_length({standard}) <= {TREE_BYTES_MAX} THEN {standard} END,
                {standard} IS NOT NULL
           FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
          WHERE p.oid >= 16384 AND p.prokind <> 'p' AND l.lanname IN ('sql', 'plpgsql')"
    )
}

/// A database's state, as far as facts depend on it. Equal fingerprints: equal facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogFingerprint(String);

/// Reads the fingerprint alone, which costs a few milliseconds with some thousand objects.
///
/// # Errors
/// What the server or the connection said.
pub async fn fingerprint(client: &Client) -> Result<CatalogFingerprint, LoadError> {
    let row = client.query_one(FINGERPRINT, &[]).await?;
    Ok(CatalogFingerprint(text(&row, 0)?.into_owned()))
}

/// Reads all facts of the database that `client` is connected to, and the fingerprint that goes with them. `generation` as in
/// [`Facts::builder`]. The client's `search_path` must be `pg_catalog`.
///
/// # Errors
/// What the server or the connection said; then the connection may be within a transaction.
pub async fn load_with_fingerprint(client: &Client, generation: u64) -> Result<(CatalogFingerprint, Facts), LoadError> {
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let fingerprint = fingerprint(client).await?;
    let version: i32 = client.query_one("SELECT current_setting('server_version_num')::int4", &[]).await?.try_get(0)?;
    let mut catalog = Catalog::new();
    // In this order: what an expression names by OID or name must be known before it is read.
    functions(client, &mut catalog).await?;
    relations(client, &mut catalog).await?;
    each(client, &operators(), |row| {
        catalog.operator(oid(row, 0)?, &text(row, 1)?, oid(row, 2)?, row.try_get(3)?);
        Ok(())
    })
    .await?;
    types(client, &mut catalog, version).await?;
    changes(client, &mut catalog).await?;
    expressions(client, &mut catalog, version).await?;
    client.batch_execute("COMMIT").await?;
    // Pure computing, a second at most for a hundred thousand functions: not on a thread that relays.
    let facts = tokio::task::spawn_blocking(move || catalog.finish(generation)).await;
    Ok((fingerprint, facts.unwrap_or_else(|_| Facts::empty())))
}

/// As [`load_with_fingerprint`], without the fingerprint: sets the connection's `search_path`.
///
/// # Errors
/// As there.
pub async fn load(client: &Client, generation: u64) -> Result<Facts, LoadError> {
    client.batch_execute("SET search_path = pg_catalog").await?;
    Ok(load_with_fingerprint(client, generation).await?.1)
}

async fn functions(client: &Client, catalog: &mut Catalog) -> Result<(), tokio_postgres::Error> {
    each(client, BUILTIN_FUNCTIONS, |row| {
        catalog.builtin(oid(row, 0)?, &text(row, 1)?, &text(row, 2)?);
        Ok(())
    })
    .await?;
    each(client, FUNCTIONS, |row| {
        let (schema, name, language, extension, internal) =
            (text(row, 1)?, text(row, 2)?, text(row, 5)?, optional(row, 6)?, optional(row, 7)?);
        let sets_custom = row.try_get::<_, Vec<Text<'_>>>(11)?;
        let sets_custom: Vec<&str> = sets_custom.iter().map(|name| &*name.0).collect();
        catalog.function(Function {
            oid: oid(row, 0)?,
            schema: &schema,
            name: &name,
            aggregate: row.try_get(3)?,
            volatility: match letter(row, 4)? {
                b'i' => Volatility::Immutable,
                b's' => Volatility::Stable,
                _ => Volatility::Volatile,
            },
            language: &language,
            extension: extension.as_deref(),
            internal: internal.as_deref(),
            hidden_by_builtin: row.try_get(8)?,
            one_argument: row.try_get(9)?,
            hides_builtins: row.try_get(10)?,
            sets_custom: &sets_custom,
        });
        Ok(())
    })
    .await?;
    each(client, AGGREGATES, |row| {
        catalog.made_of(Object::Function(oid(row, 0)?), oid(row, 1)?);
        Ok(())
    })
    .await?;
    each(client, AGGREGATE_PARTS, |row| {
        let function = Object::Function(oid(row, 0)?);
        if oid(row, 1)? != 0 {
            catalog.runs(function, Object::Operator(oid(row, 1)?));
        }
        for state in [oid(row, 2)?, oid(row, 3)?] {
            if state >= FIRST_NORMAL_OID {
                catalog.runs(function, Object::Type(state));
            }
        }
        Ok(())
    })
    .await
}

async fn relations(client: &Client, catalog: &mut Catalog) -> Result<(), tokio_postgres::Error> {
    each(client, RELATIONS, |row| {
        let (schema, name) = (text(row, 1)?, text(row, 2)?);
        catalog.relation(Relation { oid: oid(row, 0)?, schema: &schema, name: &name, kind: letter(row, 3)?, persistence: letter(row, 4)? });
        Ok(())
    })
    .await?;
    each(client, FOREIGN, |row| {
        catalog.untold(Object::Relation(oid(row, 0)?), "foreign");
        Ok(())
    })
    .await?;
    each(client, INHERITS, |row| {
        let (parent, child) = (oid(row, 0)?, oid(row, 1)?);
        catalog.reaches(Object::Relation(parent), Object::Relation(child));
        // A row that is put into a partition is held against the keys above it.
        catalog.runs(Object::Key(child), Object::Key(parent));
        Ok(())
    })
    .await?;
    each(client, OUTSIDE, |row| {
        catalog.acts_outside(&text(row, 0)?);
        Ok(())
    })
    .await
}

async fn types(client: &Client, catalog: &mut Catalog, version: i32) -> Result<(), tokio_postgres::Error> {
    each(client, TYPES, |row| {
        catalog.type_name(oid(row, 0)?, &text(row, 1)?);
        Ok(())
    })
    .await?;
    each(client, TYPE_PARTS, |row| {
        let (whole, part) = (oid(row, 0)?, oid(row, 1)?);
        catalog.reaches(Object::Type(whole), Object::Type(part));
        catalog.reaches(Object::Value(whole), Object::Value(part));
        Ok(())
    })
    .await?;
    each(client, HOLDERS, |row| {
        let holder = if row.try_get(0)? { Object::Function(oid(row, 1)?) } else { Object::Relation(oid(row, 1)?) };
        let held = oid(row, 2)?;
        catalog.reaches(holder, Object::Value(held));
        if matches!(holder, Object::Function(_)) {
            // What is given to it, and what it gives, is held against the constraints of its type.
            catalog.runs(holder, Object::Type(held));
        }
        Ok(())
    })
    .await?;
    each(client, &casts(), |row| {
        let (target, function, implicit) = (oid(row, 0)?, oid(row, 1)?, row.try_get(2)?);
        if function >= FIRST_NORMAL_OID {
            catalog.made_of(Object::Type(target), function);
        }
        if function != 0 {
            // Explicit ones, too: JSON's functions look for a cast by themselves.
            for object in cast_by(oid(row, 5)?, target) {
                catalog.runs(object, Object::Function(function));
            }
        }
        if implicit {
            catalog.implicit_cast(row.try_get(3)?, row.try_get(4)?, function);
        }
        Ok(())
    })
    .await?;
    each(client, &comparisons(), |row| {
        let of: Option<u32> = row.try_get(1)?;
        catalog.made_of(of.map_or(Object::KeyWords, Object::Value), oid(row, 0)?);
        Ok(())
    })
    .await?;
    each(client, &type_functions(version), |row| {
        let (of, function) = (oid(row, 0)?, Object::Function(oid(row, 1)?));
        catalog.runs(Object::Type(of), function);
        catalog.runs(Object::Value(of), function);
        Ok(())
    })
    .await?;
    each(client, FAMILIES, |row| {
        let (family, of) = (Object::Family(oid(row, 0)?), oid(row, 2)?);
        let member = oid(row, 1)?;
        if row.try_get(3)? {
            catalog.runs(family, Object::Operator(member));
            catalog.runs(Object::Operator(member), family);
        } else {
            catalog.runs(family, Object::Function(member));
        }
        if of >= FIRST_NORMAL_OID {
            catalog.runs(Object::Value(of), family);
        }
        Ok(())
    })
    .await?;
    each(client, "SELECT oid, o FROM pg_catalog.pg_operator, unnest(ARRAY[oprcom, oprnegate]) o WHERE oid >= 16384 AND o <> 0", |row| {
        // The planner puts one for the other.
        catalog.runs(Object::Operator(oid(row, 0)?), Object::Operator(oid(row, 1)?));
        Ok(())
    })
    .await
}

/// What stands for the use of a cast: values of one's own types on either side, or whatever a statement does.
fn cast_by(source: u32, target: u32) -> impl Iterator<Item = Object> {
    let own = |of: u32| of >= FIRST_NORMAL_OID;
    let anywhere = (!own(source) && !own(target)).then_some(Object::KeyWords);
    [source, target].into_iter().filter(move |of| own(*of)).map(Object::Value).chain(anywhere)
}

/// What data changes run.
async fn changes(client: &Client, catalog: &mut Catalog) -> Result<(), tokio_postgres::Error> {
    each(client, CHANGES, |row| {
        let rule = match &*text(row, 1)? {
            "trigger" => "trigger",
            "rule" => "rule",
            _ => "cascade",
        };
        catalog.bad(Object::Change(oid(row, 0)?), rule);
        Ok(())
    })
    .await?;
    each(client, CHANGE_FUNCTIONS, |row| {
        catalog.change_calls(oid(row, 0)?, oid(row, 1)?);
        Ok(())
    })
    .await?;
    each(client, CHANGE_TYPES, |row| {
        catalog.reaches(Object::Change(oid(row, 0)?), Object::Type(oid(row, 1)?));
        Ok(())
    })
    .await?;
    each(client, TRIGGERS, |row| {
        let change = Object::Change(oid(row, 0)?);
        let function = oid(row, 1)?;
        if function >= FIRST_NORMAL_OID {
            catalog.runs(change, Object::Function(function));
        }
        if let Some(condition) = optional(row, 2)? {
            catalog.traces_of_tree(change, &condition);
        }
        Ok(())
    })
    .await?;
    each(client, EVENT_TRIGGERS, |row| {
        catalog.runs(Object::Ddl, Object::Function(oid(row, 0)?));
        Ok(())
    })
    .await?;
    each(client, FOREIGN_KEYS, |row| {
        let (referring, referred) = (oid(row, 0)?, oid(row, 1)?);
        catalog.runs(Object::Change(referring), Object::Relation(referred));
        catalog.runs(Object::Change(referred), Object::Relation(referring));
        if row.try_get(2)? {
            catalog.runs(Object::Change(referred), Object::Change(referring));
        }
        for operator in row.try_get::<_, Vec<u32>>(3)? {
            catalog.runs(Object::Change(referring), Object::Operator(operator));
            catalog.runs(Object::Change(referred), Object::Operator(operator));
        }
        Ok(())
    })
    .await?;
    each(client, EXCLUSIONS, |row| {
        catalog.runs(Object::Change(oid(row, 0)?), Object::Operator(oid(row, 1)?));
        Ok(())
    })
    .await?;
    each(client, INDEX_FAMILIES, |row| {
        catalog.runs(Object::Relation(oid(row, 0)?), Object::Family(oid(row, 1)?));
        Ok(())
    })
    .await
}

async fn expressions(client: &Client, catalog: &mut Catalog, version: i32) -> Result<(), tokio_postgres::Error> {
    let queries: [(String, Of); 4] =
        [(views(), Object::Relation), (policies(), Object::Relation), (domains(), Object::Type), (defaults(), Object::Function)];
    for (query, object) in queries {
        each(client, &query, |row| {
            let object = object(oid(row, 0)?);
            match optional(row, 1)? {
                Some(tree) => catalog.tree(object, &tree),
                None => {
                    catalog.bad(object, "expression_too_long");
                    catalog.untold(object, "expression_too_long");
                }
            }
            Ok(())
        })
        .await?;
    }
    for (query, object) in traces(version) {
        each(client, &query, |row| {
            let object = object(oid(row, 0)?);
            match optional(row, 1)? {
                Some(tree) => catalog.traces_of_tree(object, &tree),
                None => catalog.untold(object, "expression_too_long"),
            }
            Ok(())
        })
        .await?;
    }
    each(client, &bodies(version), |row| {
        let function = oid(row, 0)?;
        let language = if row.try_get(1)? { Language::PlPgSql } else { Language::Sql };
        let (source, standard): (_, bool) = (optional(row, 2)?, row.try_get(4)?);
        match (standard, optional(row, 3)?, source) {
            (true, Some(tree), _) => catalog.sql_body(function, &tree),
            (false, _, Some(text)) => catalog.body(function, language, &text),
            // Too long: what isn't read counts as a write.
            _ => {}
        }
        Ok(())
    })
    .await
}
