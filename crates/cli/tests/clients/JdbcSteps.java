import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.time.OffsetDateTime;
import java.time.ZoneOffset;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Properties;
import java.util.Random;
import java.util.TreeMap;
import java.util.UUID;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyManager;
import org.postgresql.largeobject.LargeObject;
import org.postgresql.largeobject.LargeObjectManager;

/**
 * The JDBC driver as applications use it. Arguments: the steps to go through; the connection is in
 * PG*.
 *
 * <p>It names its statements on the server from their first execution on (prepareThreshold=1), and
 * reaches large objects by function calls of the protocol.
 */
public final class JdbcSteps {
  private static final String NAME = "steps-jdbc";
  private static final String TABLE = "steps_jdbc";
  private static final int BIG = 4 * 1024 * 1024;
  private static final int LIMIT_MS = 60_000;

  private interface Step {
    void run() throws Exception;
  }

  private interface Work {
    void run() throws SQLException;
  }

  private static Connection connect(String... options) throws SQLException {
    Map<String, String> env = System.getenv();
    Properties properties = new Properties();
    properties.setProperty("user", env.get("PGUSER"));
    properties.setProperty("password", env.get("PGPASSWORD"));
    properties.setProperty("ApplicationName", NAME);
    properties.setProperty("prepareThreshold", "1");
    for (int i = 0; i < options.length; i += 2) {
      properties.setProperty(options[i], options[i + 1]);
    }
    String place = env.get("PGHOST") + ":" + env.get("PGPORT") + "/" + env.get("PGDATABASE");
    return DriverManager.getConnection("jdbc:postgresql://" + place, properties);
  }

  private static Object one(Connection client, String sql, Object... values) throws SQLException {
    try (PreparedStatement statement = client.prepareStatement(sql)) {
      for (int i = 0; i < values.length; i++) {
        statement.setObject(i + 1, values[i]);
      }
      try (ResultSet rows = statement.executeQuery()) {
        rows.next();
        return rows.getObject(1);
      }
    }
  }

  private static Object show(Connection client, String setting) throws SQLException {
    return one(client, "SELECT current_setting(?)", setting);
  }

  private static void run(Connection client, String sql) throws SQLException {
    try (Statement statement = client.createStatement()) {
      statement.execute(sql);
    }
  }

  private static void equal(Object found, Object expected) {
    if (!Objects.deepEquals(found, expected)) {
      throw new AssertionError(found + " is not " + expected);
    }
  }

  private static SQLException fails(String state, Work work) {
    try {
      work.run();
    } catch (SQLException error) {
      equal(error.getSQLState(), state);
      return error;
    }
    throw new AssertionError("it did not fail with " + state);
  }

  private static void startup() throws Exception {
    try (Connection client = connect("options", "-c statement_timeout=54321 -c TimeZone=Asia/Tokyo")) {
      for (int i = 0; i < 5; i++) {
        equal(show(client, "application_name"), NAME);
        equal(show(client, "statement_timeout"), "54321ms");
      }
      PGConnection driver = client.unwrap(PGConnection.class);
      equal(driver.getParameterStatus("application_name"), NAME);
      if (driver.getBackendPID() <= 0 || client.getMetaData().getDatabaseMajorVersion() < 14) {
        throw new AssertionError("no backend, or an old one");
      }
    }
  }

  private static void settings() throws Exception {
    // Read-only by a setting of the session, not of each transaction.
    try (Connection client = connect("readOnlyMode", "always"); Connection other = connect()) {
      run(client, "SET work_mem = '5MB'");
      run(other, "SET work_mem TO '6MB'");
      client.setSchema("pg_catalog");
      client.setClientInfo("ApplicationName", "renamed");
      for (int i = 0; i < 5; i++) {
        equal(show(client, "work_mem"), "5MB");
        equal(show(other, "work_mem"), "6MB");
        equal(client.getSchema(), "pg_catalog");
        equal(other.getSchema(), "public");
        equal(show(client, "application_name"), "renamed");
        equal(show(other, "application_name"), NAME);
      }
      PGConnection driver = client.unwrap(PGConnection.class);
      equal(driver.getParameterStatus("application_name"), "renamed");
      client.setReadOnly(true);
      fails("25006", () -> run(client, "CREATE TABLE public." + TABLE + "_never ()"));
      client.setReadOnly(false);
      client.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
      equal(client.getTransactionIsolation(), Connection.TRANSACTION_SERIALIZABLE);
      equal(other.getTransactionIsolation(), Connection.TRANSACTION_READ_COMMITTED);
      run(client, "RESET work_mem");
      equal(show(client, "work_mem"), "4MB");
    }
  }

  private static void prepared() throws Exception {
    try (Connection client = connect(); Connection other = connect();
        PreparedStatement sum = client.prepareStatement("SELECT ?::int + 1");
        PreparedStatement text = other.prepareStatement("SELECT ?::text || 'x'");
        PreparedStatement quotient = client.prepareStatement("SELECT 1 / ?::int")) {
      for (int i = 0; i < 10; i++) {
        sum.setInt(1, i);
        text.setString(1, "a".repeat(i));
        try (ResultSet rows = sum.executeQuery(); ResultSet texts = text.executeQuery()) {
          rows.next();
          texts.next();
          equal(rows.getInt(1), i + 1);
          equal(texts.getString(1), "a".repeat(i) + "x");
        }
      }
      quotient.setInt(1, 0);
      fails("22012", quotient::executeQuery);
      quotient.setInt(1, 1);
      quotient.executeQuery().close();
      // More than the driver keeps, so that it closes the oldest ones.
      for (int i = 0; i < 300; i++) {
        equal(one(client, "SELECT " + i + " + ?::int", 1), i + 1);
      }
    }
  }

  private static void binary() throws Exception {
    byte[] raw = new byte[256];
    for (int i = 0; i < raw.length; i++) {
      raw[i] = (byte) i;
    }
    OffsetDateTime moment = OffsetDateTime.of(2026, 2, 28, 23, 59, 59, 123_456_000, ZoneOffset.UTC);
    UUID uuid = UUID.fromString("12345678-1234-5678-1234-567812345678");
    // -1: binary from the first execution on.
    try (Connection client = connect("prepareThreshold", "-1"); PreparedStatement statement = client.prepareStatement(
        "SELECT ?::int, ?::bigint, ?::float8, ?::bool, ?::text, ?::numeric, ?::timestamptz, ?::bytea, ?::uuid, ?::int[], ?::text")) {
      for (int i = 0; i < 3; i++) {
        statement.setInt(1, 42);
        statement.setLong(2, 1L << 40);
        statement.setDouble(3, 1.5);
        statement.setBoolean(4, true);
        statement.setString(5, "žluť 漢字 \n");
        statement.setBigDecimal(6, new BigDecimal("12345678901234567890.123456789"));
        statement.setObject(7, moment);
        statement.setBytes(8, raw);
        statement.setObject(9, uuid);
        statement.setArray(10, client.createArrayOf("int", new Integer[] {1, 2, null}));
        statement.setString(11, null);
        try (ResultSet rows = statement.executeQuery()) {
          rows.next();
          equal(rows.getInt(1), 42);
          equal(rows.getLong(2), 1L << 40);
          equal(rows.getDouble(3), 1.5);
          equal(rows.getBoolean(4), true);
          equal(rows.getString(5), "žluť 漢字 \n");
          equal(rows.getBigDecimal(6), new BigDecimal("12345678901234567890.123456789"));
          equal(rows.getObject(7, OffsetDateTime.class), moment);
          equal(rows.getBytes(8), raw);
          equal(rows.getObject(9), uuid);
          equal(rows.getArray(10).getArray(), new Integer[] {1, 2, null});
          equal(rows.getString(11), null);
        }
      }
    }
  }

  private static void pipeline() throws Exception {
    try (Connection client = connect()) {
      run(client, "DROP TABLE IF EXISTS " + TABLE + "_pipeline");
      run(client, "CREATE TABLE " + TABLE + "_pipeline (id int PRIMARY KEY)");
      String insert = "INSERT INTO " + TABLE + "_pipeline VALUES (?)";
      try (PreparedStatement statement = client.prepareStatement(insert)) {
        for (int i = 0; i < 2000; i++) {
          statement.setInt(1, i);
          statement.addBatch();
        }
        equal(Arrays.stream(statement.executeBatch()).sum(), 2000);
        for (int id : new int[] {5000, 1, 5001}) {
          statement.setInt(1, id);
          statement.addBatch();
        }
        fails("23505", statement::executeBatch);
      }
      equal(one(client, "SELECT count(*) FROM " + TABLE + "_pipeline"), 2000L);
      run(client, "DROP TABLE " + TABLE + "_pipeline");
    }
  }

  private static void errors() throws Exception {
    try (Connection client = connect()) {
      for (int i = 0; i < 3; i++) {
        fails("42703", () -> one(client, "SELECT no_such_column"));
        fails("42601", () -> run(client, "SELEC 1"));
        equal(one(client, "SELECT 1"), 1);
      }
      try (Statement statement = client.createStatement()) {
        statement.execute("DO $$ BEGIN RAISE NOTICE 'noticed'; END $$");
        equal(statement.getWarnings().getMessage(), "noticed");
      }
    }
  }

  private static void transactions() throws Exception {
    try (Connection client = connect()) {
      run(client, "DROP TABLE IF EXISTS " + TABLE);
      run(client, "CREATE TABLE " + TABLE + " (id int PRIMARY KEY)");
      String insert = "INSERT INTO " + TABLE + " VALUES ";
      client.setAutoCommit(false);
      run(client, insert + "(1)");
      run(client, "SET LOCAL work_mem = '7MB'");
      equal(show(client, "work_mem"), "7MB");
      client.commit();
      equal(show(client, "work_mem"), "4MB");
      run(client, insert + "(2)");
      fails("23505", () -> run(client, insert + "(1)"));
      fails("25P02", () -> run(client, "SELECT 1"));
      client.rollback();
      Savepoint savepoint = client.setSavepoint();
      fails("23505", () -> run(client, insert + "(1)"));
      client.rollback(savepoint);
      run(client, insert + "(4)");
      client.commit();
      client.setAutoCommit(true);
      equal(one(client, "SELECT string_agg(id::text, ' ' ORDER BY id) FROM " + TABLE), "1 4");
      run(client, "DROP TABLE " + TABLE);
    }
  }

  private static void cancel() throws Exception {
    try (Connection client = connect(); Connection other = connect();
        Statement sleep = client.createStatement()) {
      Thread striker = new Thread(() -> {
        try {
          long until = System.currentTimeMillis() + LIMIT_MS;
          String count = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' "
              + "AND query LIKE '%cancel-jdbc%'";
          while (!one(other, count).equals(1L) && System.currentTimeMillis() < until) {
            Thread.onSpinWait();
          }
          sleep.cancel();
        } catch (SQLException error) {
          error.printStackTrace();
        }
      });
      striker.start();
      fails("57014", () -> sleep.execute("SELECT pg_sleep(60) /* cancel-jdbc */"));
      striker.join();
      equal(one(client, "SELECT 1"), 1);
      // The driver's own time-out is a cancel request too.
      sleep.setQueryTimeout(1);
      fails("57014", () -> sleep.execute("SELECT pg_sleep(60)"));
      equal(one(client, "SELECT 1"), 1);
    }
  }

  private static void copy() throws Exception {
    int count = 20_000;
    try (Connection client = connect()) {
      run(client, "DROP TABLE IF EXISTS " + TABLE + "_copy");
      run(client, "CREATE TABLE " + TABLE + "_copy (id int, what text)");
      StringBuilder rows = new StringBuilder();
      for (int i = 0; i < count; i++) {
        rows.append(i).append("\trow ").append(i).append('\n');
      }
      CopyManager copy = client.unwrap(PGConnection.class).getCopyAPI();
      String into = "COPY " + TABLE + "_copy FROM STDIN";
      equal(copy.copyIn(into, new StringReader(rows.toString())), (long) count);
      StringWriter out = new StringWriter();
      copy.copyOut("COPY " + TABLE + "_copy TO STDOUT", out);
      equal(out.toString(), rows.toString());
      fails("22P02", () -> {
        try {
          copy.copyIn(into, new StringReader("no number\tx\n"));
        } catch (java.io.IOException error) {
          throw new AssertionError(error);
        }
      });
      copy.copyIn(into).cancelCopy();
      equal(one(client, "SELECT count(*) FROM " + TABLE + "_copy"), (long) count);
      run(client, "DROP TABLE " + TABLE + "_copy");
    }
  }

  private static String md5(byte[] data) throws Exception {
    StringBuilder text = new StringBuilder();
    for (byte part : MessageDigest.getInstance("MD5").digest(data)) {
      text.append(String.format("%02x", part));
    }
    return text.toString();
  }

  private static void bigValues() throws Exception {
    String text = "ž".repeat(BIG / 2);
    byte[] raw = new byte[BIG];
    new Random(7).nextBytes(raw);
    try (Connection client = connect()) {
      for (int i = 0; i < 2; i++) {
        equal(one(client, "SELECT ?::text", text), text);
        equal(one(client, "SELECT md5(?::text)", text), md5(text.getBytes(StandardCharsets.UTF_8)));
        equal(one(client, "SELECT ?::bytea", (Object) raw), raw);
        equal(one(client, "SELECT md5(?::bytea)", (Object) raw), md5(raw));
      }
    }
  }

  private static void largeObjects() throws Exception {
    byte[] data = new byte[300_000];
    new Random(8).nextBytes(data);
    try (Connection client = connect()) {
      client.setAutoCommit(false);
      LargeObjectManager manager = client.unwrap(PGConnection.class).getLargeObjectAPI();
      long oid = manager.createLO(LargeObjectManager.READ | LargeObjectManager.WRITE);
      LargeObject object = manager.open(oid, LargeObjectManager.READ | LargeObjectManager.WRITE);
      object.write(data);
      object.seek64(100_000, LargeObject.SEEK_SET);
      equal(object.read(1000), Arrays.copyOfRange(data, 100_000, 101_000));
      object.close();
      client.commit();
      object = manager.open(oid, LargeObjectManager.READ);
      equal(object.size64(), 300_000L);
      object.close();
      manager.unlink(oid);
      client.commit();
    }
  }

  private static void listen() throws Exception {
    try (Connection client = connect(); Connection other = connect()) {
      run(client, "LISTEN " + TABLE);
      PGConnection driver = client.unwrap(PGConnection.class);
      for (int i = 0; i < 3; i++) {
        one(other, "SELECT pg_notify(?, ?)::text", TABLE, "payload " + i);
        PGNotification[] heard = driver.getNotifications(LIMIT_MS);
        equal(heard.length, 1);
        equal(heard[0].getName() + " " + heard[0].getParameter(), TABLE + " payload " + i);
      }
      run(client, "UNLISTEN *");
    }
  }

  private static void state() throws Exception {
    try (Connection client = connect(); Connection other = connect()) {
      run(client, "CREATE TEMPORARY TABLE steps_temporary (id int)");
      for (int i = 0; i < 5; i++) {
        run(client, "INSERT INTO steps_temporary VALUES (" + i + ")");
        equal(one(other, "SELECT to_regclass('steps_temporary') IS NULL"), true);
      }
      equal(one(client, "SELECT count(*) FROM steps_temporary"), 5L);
      run(client, "DROP TABLE steps_temporary");
      one(client, "SELECT pg_advisory_lock(4714)::text");
      equal(one(client, "SELECT 1"), 1);
      equal(one(other, "SELECT pg_try_advisory_lock(4714)"), false);
      equal(one(client, "SELECT pg_advisory_unlock(4714)"), true);
      equal(one(other, "SELECT pg_try_advisory_lock(4714)"), true);
    }
  }

  private static void cursor() throws Exception {
    try (Connection client = connect()) {
      client.setAutoCommit(false);
      try (Statement statement = client.createStatement()) {
        // A portal that is executed again and again.
        statement.setFetchSize(10);
        int total = 0;
        try (ResultSet rows = statement.executeQuery("SELECT generate_series(1, 1000)")) {
          while (rows.next()) {
            total += rows.getInt(1);
          }
        }
        equal(total, 500_500);
      }
      client.commit();
    }
  }

  private static void many() throws Exception {
    List<Connection> clients = new ArrayList<>();
    for (int i = 0; i < 8; i++) {
      clients.add(connect("ApplicationName", "many-" + i));
      run(clients.get(i), "SET work_mem = '" + (i + 1) + "MB'");
    }
    for (int turn = 0; turn < 10; turn++) {
      for (int i = 0; i < 8; i++) {
        equal(show(clients.get(i), "work_mem"), (i + 1) + "MB");
        equal(show(clients.get(i), "application_name"), "many-" + i);
        equal(one(clients.get(i), "SELECT ?::int + " + i, turn), turn + i);
      }
    }
    for (Connection client : clients) {
      client.close();
    }
  }

  public static void main(String[] names) {
    Map<String, Step> steps = new TreeMap<>();
    steps.put("startup", JdbcSteps::startup);
    steps.put("settings", JdbcSteps::settings);
    steps.put("prepared", JdbcSteps::prepared);
    steps.put("binary", JdbcSteps::binary);
    steps.put("pipeline", JdbcSteps::pipeline);
    steps.put("errors", JdbcSteps::errors);
    steps.put("transactions", JdbcSteps::transactions);
    steps.put("cancel", JdbcSteps::cancel);
    steps.put("copy", JdbcSteps::copy);
    steps.put("big_values", JdbcSteps::bigValues);
    steps.put("large_objects", JdbcSteps::largeObjects);
    steps.put("listen", JdbcSteps::listen);
    steps.put("state", JdbcSteps::state);
    steps.put("cursor", JdbcSteps::cursor);
    steps.put("many", JdbcSteps::many);
    int status = 0;
    for (String name : names) {
      try {
        steps.get(name).run();
        System.out.println("passed " + name);
      } catch (Throwable error) {
        error.printStackTrace();
        System.out.println("failed " + name);
        status = 1;
      }
    }
    System.exit(status);
  }
}
