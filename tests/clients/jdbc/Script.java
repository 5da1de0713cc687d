import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.sql.*;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Properties;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.PGStatement;
import org.postgresql.copy.CopyManager;
import org.postgresql.largeobject.LargeObject;
import org.postgresql.largeobject.LargeObjectManager;
import org.postgresql.util.PSQLException;
import org.postgresql.util.ServerErrorMessage;

/** pgjdbc: what an application does with it. Everything that it prints is compared. Arguments: URL, user, password. */
public class Script {
    static String url, user, password;

    interface Work { void run() throws Exception; }

    static void show(String what, Object... values) {
        StringBuilder line = new StringBuilder(what);
        for (Object value : values) line.append(' ').append(value instanceof Object[] array ? Arrays.deepToString(array) : String.valueOf(value));
        System.out.println(line);
    }

    static void fails(String what, Work work) throws Exception {
        try {
            work.run();
            show(what, "didn't fail");
        } catch (BatchUpdateException error) {
            show(what, error.getSQLState(), error.getMessage().split("\n")[0], Arrays.toString(error.getUpdateCounts()));
        } catch (PSQLException error) {
            ServerErrorMessage server = error.getServerErrorMessage();
            show(what, error.getSQLState(), error.getMessage().split("\n")[0]);
            if (server != null) show(what, server.getSeverity(), server.getDetail(), server.getHint(), server.getPosition(), server.getConstraint(), server.getRoutine());
        } catch (SQLException error) {
            show(what, error.getSQLState(), error.getMessage().split("\n")[0]);
        }
    }

    static Connection connect(String... options) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", user);
        properties.setProperty("password", password);
        for (int index = 0; index < options.length; index += 2) properties.setProperty(options[index], options[index + 1]);
        return DriverManager.getConnection(url, properties);
    }

    static String rows(ResultSet result) throws SQLException {
        List<String> rows = new ArrayList<>();
        int columns = result.getMetaData().getColumnCount();
        while (result.next()) {
            List<String> row = new ArrayList<>();
            for (int column = 1; column <= columns; column++) row.add(result.getString(column));
            rows.add(row.toString());
        }
        return rows.toString();
    }

    static String ask(Connection conn, String query) throws SQLException {
        try (Statement statement = conn.createStatement(); ResultSet result = statement.executeQuery(query)) { return rows(result); }
    }

    static void run(Connection conn, String query) throws SQLException {
        try (Statement statement = conn.createStatement()) { statement.execute(query); }
    }

    static void basics() throws Exception {
        try (Connection conn = connect()) {
            DatabaseMetaData about = conn.getMetaData();
            show("server", about.getDatabaseProductName(), about.getDatabaseProductVersion(), conn.getTransactionIsolation(), conn.isReadOnly(), conn.getCatalog() != null, conn.getSchema());
            run(conn, "CREATE TABLE thing (id serial PRIMARY KEY, name text UNIQUE, price numeric(8,2), made date, tags text[])");
            try (PreparedStatement insert = conn.prepareStatement("INSERT INTO thing (name, price, made, tags) VALUES (?, ?, ?, ?)", Statement.RETURN_GENERATED_KEYS)) {
                insert.setString(1, "pen");
                insert.setBigDecimal(2, new BigDecimal("1.50"));
                insert.setDate(3, Date.valueOf("2024-02-29"));
                insert.setArray(4, conn.createArrayOf("text", new String[] {"a", null, "c,\""}));
                show("inserted", insert.executeUpdate());
                try (ResultSet keys = insert.getGeneratedKeys()) { show("keys", rows(keys)); }
            }
            try (Statement statement = conn.createStatement(); ResultSet result = statement.executeQuery("SELECT * FROM thing")) {
                ResultSetMetaData columns = result.getMetaData();
                for (int column = 1; column <= columns.getColumnCount(); column++)
                    show("column", columns.getColumnName(column), columns.getColumnTypeName(column), columns.getTableName(column), columns.isNullable(column), columns.isAutoIncrement(column), columns.getPrecision(column));
                result.next();
                show("row", result.getInt(1), result.getString(2), result.getBigDecimal(3), result.getDate(4), (Object[]) result.getArray(5).getArray());
            }
            try (ResultSet tables = about.getTables(null, "public", "%", new String[] {"TABLE"})) { while (tables.next()) show("table", tables.getString(3), tables.getString(4)); }
            try (ResultSet columns = about.getColumns(null, "public", "thing", "%")) { while (columns.next()) show("column", columns.getString(4), columns.getString(6), columns.getString(13)); }
            try (ResultSet keys = about.getPrimaryKeys(null, "public", "thing")) { show("key", keys.next(), keys.getString(4), keys.getString(6)); }
            try (Statement statement = conn.createStatement()) {
                boolean first = statement.execute("SELECT 1; INSERT INTO thing (name) VALUES ('ink'); SELECT 2");
                show("several", first, rows(statement.getResultSet()), statement.getMoreResults(), statement.getUpdateCount(), statement.getMoreResults(), rows(statement.getResultSet()));
            }
        }
    }

    static void prepared() throws Exception {
        for (String mode : new String[] {"extended", "extendedForPrepared", "extendedCacheEverything", "simple"}) {
            try (Connection conn = connect("preferQueryMode", mode, "prepareThreshold", "3")) {
                try (PreparedStatement select = conn.prepareStatement("SELECT name, ?::int + id AS sum FROM thing WHERE id = ?")) {
                    for (int round = 0; round < 7; round++) {
                        select.setInt(1, round * 100);
                        select.setInt(2, 1);
                        try (ResultSet result = select.executeQuery()) { show(mode, rows(result), select.unwrap(PGStatement.class).isUseServerPrepare()); }
                    }
                    show("parameters", select.getParameterMetaData().getParameterTypeName(1), select.getMetaData().getColumnName(2));
                }
            }
        }
        try (Connection conn = connect("prepareThreshold", "-1", "preparedStatementCacheQueries", "2")) {
            for (int number = 0; number < 6; number++)
                try (PreparedStatement select = conn.prepareStatement("SELECT " + number + " + ?::int8")) {
                    select.setLong(1, number);
                    try (ResultSet result = select.executeQuery()) { show("forced", rows(result)); }
                }
            run(conn, "CREATE TABLE changing (a int)");
            run(conn, "INSERT INTO changing VALUES (1)");
            try (PreparedStatement all = conn.prepareStatement("SELECT * FROM changing")) {
                for (int round = 0; round < 3; round++) try (ResultSet result = all.executeQuery()) { show("before", rows(result)); }
                run(conn, "ALTER TABLE changing ADD COLUMN b text DEFAULT 'new'");
                // The driver prepares again by itself outside a transaction.
                try (ResultSet result = all.executeQuery()) { show("after", rows(result)); }
                run(conn, "ALTER TABLE changing DROP COLUMN b");
                conn.setAutoCommit(false);
                fails("cached plan", () -> all.executeQuery());
                conn.rollback();
            }
        }
        try (Connection conn = connect("autosave", "always", "prepareThreshold", "1")) {
            conn.setAutoCommit(false);
            run(conn, "INSERT INTO thing (name) VALUES ('autosaved')");
            fails("unique", () -> run(conn, "INSERT INTO thing (name) VALUES ('autosaved')"));
            show("goes on", ask(conn, "SELECT count(*) FROM thing WHERE name = 'autosaved'"));
            conn.rollback();
        }
    }

    static void batches() throws Exception {
        for (String rewrite : new String[] {"false", "true"}) {
            try (Connection conn = connect("reWriteBatchedInserts", rewrite)) {
                run(conn, "DROP TABLE IF EXISTS batch");
                run(conn, "CREATE TABLE batch (a int PRIMARY KEY, b text)");
                try (PreparedStatement insert = conn.prepareStatement("INSERT INTO batch VALUES (?, ?)")) {
                    for (int number = 0; number < 3000; number++) { insert.setInt(1, number); insert.setString(2, "x".repeat(number % 90)); insert.addBatch(); }
                    int[] counts = insert.executeBatch();
                    show("batch", counts.length, counts[0], ask(conn, "SELECT count(*), sum(a), sum(length(b)) FROM batch"));
                    for (int number : new int[] {5000, 5001, 7, 5002}) { insert.setInt(1, number); insert.setString(2, "?"); insert.addBatch(); }
                    fails("one is bad", () -> insert.executeBatch());
                }
                show("left", ask(conn, "SELECT count(*) FROM batch WHERE a >= 5000"));
                try (Statement several = conn.createStatement()) {
                    several.addBatch("UPDATE batch SET b = 'u' WHERE a < 10");
                    several.addBatch("DELETE FROM batch WHERE a >= 2000");
                    several.addBatch("INSERT INTO batch VALUES (-1, 'minus')");
                    show("mixed", Arrays.toString(several.executeBatch()));
                }
                try (PreparedStatement returning = conn.prepareStatement("INSERT INTO batch VALUES (?, 'r') RETURNING a", Statement.RETURN_GENERATED_KEYS)) {
                    for (int number = -5; number < -1; number++) { returning.setInt(1, number); returning.addBatch(); }
                    returning.executeBatch();
                    try (ResultSet keys = returning.getGeneratedKeys()) { show("keys", rows(keys)); }
                }
            }
        }
    }

    static void transactions() throws Exception {
        try (Connection conn = connect()) {
            conn.setAutoCommit(false);
            run(conn, "INSERT INTO thing (name) VALUES ('outer')");
            Savepoint one = conn.setSavepoint("one");
            fails("unique", () -> run(conn, "INSERT INTO thing (name) VALUES ('outer')"));
            fails("failed", () -> ask(conn, "SELECT 1"));
            conn.rollback(one);
            show("inside", ask(conn, "SELECT count(*) FROM thing"));
            conn.releaseSavepoint(conn.setSavepoint());
            conn.commit();
            for (int level : new int[] {Connection.TRANSACTION_READ_COMMITTED, Connection.TRANSACTION_REPEATABLE_READ, Connection.TRANSACTION_SERIALIZABLE}) {
                conn.setTransactionIsolation(level);
                show("level", ask(conn, "SHOW transaction_isolation"), ask(conn, "SELECT count(*) FROM thing"));
                conn.commit();
            }
            conn.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
            conn.setReadOnly(true);
            show("read only", ask(conn, "SELECT name FROM thing ORDER BY id"));
            fails("write", () -> run(conn, "DELETE FROM thing"));
            conn.rollback();
            conn.setReadOnly(false);
            run(conn, "DELETE FROM thing WHERE name = 'outer'");
            conn.rollback();
            fails("division", () -> ask(conn, "SELECT 1 / 0"));
            fails("commit of a failed one", () -> conn.commit());
            show("clean", ask(conn, "SELECT count(*) FROM thing"));
            conn.commit();
        }
    }

    static void cursors() throws Exception {
        try (Connection conn = connect("defaultRowFetchSize", "50")) {
            conn.setAutoCommit(false);
            try (PreparedStatement select = conn.prepareStatement("SELECT g, repeat('x', g % 100) FROM generate_series(1, ?) g")) {
                select.setInt(1, 777);
                try (ResultSet result = select.executeQuery()) {
                    long sum = 0, between = 0;
                    while (result.next()) {
                        sum += result.getInt(1);
                        // Another statement while the portal is suspended.
                        if (result.getRow() % 200 == 0) between += ask(conn, "SELECT count(*) FROM thing").length();
                    }
                    show("fetched", sum, between > 0);
                }
                try (ResultSet part = select.executeQuery()) { part.next(); show("left open", part.getInt(1)); }
            }
            fails("in the middle", () -> ask(conn, "SELECT 1 / (120 - g) FROM generate_series(1, 500) g"));
            conn.rollback();
            run(conn, "CREATE FUNCTION open_one() RETURNS refcursor LANGUAGE plpgsql AS $$DECLARE r refcursor := 'named'; BEGIN OPEN r FOR SELECT g FROM generate_series(1, 5) g; RETURN r; END$$");
            try (CallableStatement call = conn.prepareCall("{? = call open_one()}")) {
                call.registerOutParameter(1, Types.REF_CURSOR);
                call.execute();
                try (ResultSet result = call.getObject(1, ResultSet.class)) { show("refcursor", rows(result)); }
            }
            conn.commit();
            try (Statement scroll = conn.createStatement(ResultSet.TYPE_SCROLL_INSENSITIVE, ResultSet.CONCUR_UPDATABLE); ResultSet result = scroll.executeQuery("SELECT id, name FROM thing ORDER BY id")) {
                result.last();
                show("last", result.getRow(), result.getString(2));
                result.first();
                result.updateString(2, "pencil");
                result.updateRow();
            }
            show("updated", ask(conn, "SELECT name FROM thing WHERE id = 1"));
            conn.rollback();
        }
    }

    static void copies() throws Exception {
        try (Connection conn = connect()) {
            run(conn, "CREATE TABLE copied (a int, b text)");
            CopyManager copies = conn.unwrap(PGConnection.class).getCopyAPI();
            StringBuilder lines = new StringBuilder();
            for (int number = 0; number < 3000; number++) lines.append(number).append('\t').append(number % 7 == 0 ? "\\N" : "line " + number).append('\n');
            show("copied", copies.copyIn("COPY copied FROM STDIN", new StringReader(lines.toString())), ask(conn, "SELECT count(*), count(b), sum(a) FROM copied"));
            StringWriter out = new StringWriter();
            show("out", copies.copyOut("COPY (SELECT * FROM copied ORDER BY a LIMIT 9) TO STDOUT (FORMAT csv)", out), out.toString().replace('\n', '|'));
            fails("bad line", () -> copies.copyIn("COPY copied FROM STDIN", new StringReader("1\tone\ntwo\t2\n")));
            fails("no table", () -> copies.copyIn("COPY nowhere FROM STDIN", new StringReader("1\n")));
            var given = copies.copyIn("COPY copied FROM STDIN");
            given.writeToCopy("1\tone\n".getBytes(), 0, 6);
            fails("given up", () -> given.cancelCopy());
            show("counted", ask(conn, "SELECT count(*) FROM copied"));
            conn.setAutoCommit(false);
            LargeObjectManager objects = conn.unwrap(PGConnection.class).getLargeObjectAPI();
            long id = objects.createLO();
            try (LargeObject object = objects.open(id, LargeObjectManager.READWRITE)) {
                object.write("a large object".repeat(5000).getBytes());
                object.seek(14 * 4999);
                show("large object", new String(object.read(20)), object.size64());
            }
            objects.delete(id);
            conn.commit();
        }
    }

    static void notices() throws Exception {
        try (Connection conn = connect(); Connection other = connect(); Statement statement = conn.createStatement()) {
            statement.execute("DO $$BEGIN RAISE NOTICE 'hello'; RAISE WARNING 'careful'; END$$");
            for (SQLWarning warning = statement.getWarnings(); warning != null; warning = warning.getNextWarning()) show("warning", warning.getSQLState(), warning.getMessage());
            PGConnection listener = conn.unwrap(PGConnection.class);
            run(conn, "LISTEN news");
            run(conn, "NOTIFY news, 'mine'");
            run(other, "NOTIFY news, 'theirs'");
            int heard = 0;
            while (heard < 2)
                for (PGNotification note : listener.getNotifications(20_000)) {
                    show("heard", note.getName(), note.getParameter(), note.getPID() == listener.getBackendPID(), note.getPID() == other.unwrap(PGConnection.class).getBackendPID());
                    heard++;
                }
            run(conn, "UNLISTEN *");
        }
    }

    static void interruptions() throws Exception {
        try (Connection conn = connect("options", "-c app.start=yes", "ApplicationName", "a script"); Statement statement = conn.createStatement()) {
            show("startup", ask(conn, "SHOW app.start"), ask(conn, "SHOW application_name"), conn.getClientInfo("ApplicationName"));
            statement.setQueryTimeout(1);
            fails("timeout", () -> statement.executeQuery("SELECT pg_sleep(30)"));
            show("it lives", ask(conn, "SELECT 1"));
            statement.setQueryTimeout(0);
            Thread canceler = new Thread(() -> { try { Thread.sleep(300); statement.cancel(); } catch (Exception error) { show("cancel", error); } });
            canceler.start();
            fails("canceled", () -> statement.executeQuery("SELECT pg_sleep(30)"));
            canceler.join();
            show("it lives", ask(conn, "SELECT 2"), conn.isValid(5));
            run(conn, "SET TimeZone TO 'Asia/Tokyo'");
            show("reported", conn.unwrap(PGConnection.class).getParameterStatus("TimeZone"), conn.unwrap(PGConnection.class).getParameterStatus("in_hot_standby"));
            conn.setSchema("pg_catalog");
            show("schema", conn.getSchema(), ask(conn, "SHOW search_path"));
        }
        for (String type : new String[] {"primary", "preferPrimary", "any"})
            try (Connection conn = connect("targetServerType", type)) { show(type, ask(conn, "SELECT 1")); }
        fails("bad startup", () -> connect("options", "-c work_mem=much").close());
    }

    public static void main(String[] arguments) throws Exception {
        url = arguments[0];
        user = arguments[1];
        password = arguments[2];
        show("=== basics"); basics();
        show("=== prepared"); prepared();
        show("=== batches"); batches();
        show("=== transactions"); transactions();
        show("=== cursors"); cursors();
        show("=== copies"); copies();
        show("=== notices"); notices();
        show("=== interruptions"); interruptions();
        show("done");
    }
}
