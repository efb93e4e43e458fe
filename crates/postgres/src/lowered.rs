//! Where `synchronous_commit` is set below `on`: such commits are acknowledged before a standby has
//! them (I1). PostgreSQL shows the settings of the server, of roles and databases, and of the
//! functions of the database that is asked; those of another session it does not show.

use std::collections::BTreeSet;

use pgproto::lowered::BELOW_ON;
use types::{Lowered, Millis};

use crate::error::Error;
use crate::instance::LocalInstance;
use crate::observe::now;
use crate::sql::{self, Row, literal, within};

/// The catalogues are asked so often, and after each reload.
const PERIOD: Millis = Millis(10_000);
/// The limit of one look, connection included.
const LIMIT: Millis = Millis(5_000);
/// More places than this are not listed, of each kind.
const PLACES_MAX: usize = 100;
/// The name under which `ALTER ROLE ALL SET` shows.
const ALL_ROLES: &str = "ALL";

/// What looks remember.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// When the last look began, on which server and configuration.
    looked: Option<(Millis, String)>,
    under_way: bool,
    found: BTreeSet<Lowered>,
}

/// What was found last on the running primary. `server` names the server and the configuration that
/// it has loaded. A look that is due goes on beside the observation, on a connection of its own, so
/// that a large or a locked catalogue holds nothing up.
pub(crate) fn seen(instance: &LocalInstance, server: &str) -> BTreeSet<Lowered> {
    let mut memory = instance.memory();
    let memory = &mut memory.lowered;
    let recent =
        memory.looked.as_ref().is_some_and(|(at, of)| of == server && now() < at.plus(PERIOD));
    if !recent && !memory.under_way {
        memory.looked = Some((now(), server.to_owned()));
        memory.under_way = true;
        let instance = instance.clone();
        tokio::spawn(async move {
            let found = within(LIMIT, "a look for lowered settings", look(&instance)).await;
            let mut memory = instance.memory();
            memory.lowered.under_way = false;
            match found {
                Ok(found) => memory.lowered.found = found,
                // What was found before stays until the next look.
                Err(error) => tracing::debug!(%error, "lowered settings were not looked for"),
            }
        });
    }
    memory.found.clone()
}

/// A standby's settings count when it is a primary.
pub(crate) fn forget(instance: &LocalInstance) {
    let mut memory = instance.memory();
    memory.lowered.looked = None;
    memory.lowered.found.clear();
}

async fn look(instance: &LocalInstance) -> Result<BTreeSet<Lowered>, Error> {
    let client = instance.fresh_client().await?;
    let sets = sql::row_sets(&client, "look for lowered settings", &statements()).await?;
    Ok(sets.iter().flatten().filter_map(place).collect())
}

/// Rows of: kind, role or function, database. Our own session has a value of its own, so the
/// server's is read from its files.
fn statements() -> String {
    let below: Vec<String> = BELOW_ON.iter().map(|value| literal(value)).collect();
    let below = below.join(", ");
    let set = format!(
        "lower(split_part(c, '=', 1)) = 'synchronous_commit' \
         AND lower(substr(c, strpos(c, '=') + 1)) IN ({below}) LIMIT {PLACES_MAX}"
    );
    format!(
        "SELECT 'server', '', '' FROM pg_file_settings \
           WHERE lower(name) = 'synchronous_commit' AND applied AND lower(setting) IN ({below}); \
         SELECT CASE WHEN s.setdatabase = 0 THEN 'role' WHEN s.setrole = 0 THEN 'database' \
             ELSE 'both' END, \
             CASE WHEN s.setrole = 0 THEN '{ALL_ROLES}' ELSE r.rolname END, d.datname \
           FROM pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) c \
           LEFT JOIN pg_roles r ON r.oid = s.setrole \
           LEFT JOIN pg_database d ON d.oid = s.setdatabase WHERE {set}; \
         SELECT 'function', p.oid::regprocedure, '' \
           FROM pg_proc p CROSS JOIN LATERAL unnest(p.proconfig) c WHERE {set}"
    )
}

fn place(row: &Row) -> Option<Lowered> {
    let field = |index: usize| row.get(index).cloned().flatten();
    let (kind, who, database) = (field(0)?, field(1), field(2));
    Some(match kind.as_str() {
        "server" => Lowered::Server,
        "role" => Lowered::Role(who?),
        "database" => Lowered::Database(database?),
        "both" => Lowered::RoleInDatabase(who?, database?),
        _ => Lowered::Function(who?),
    })
}
