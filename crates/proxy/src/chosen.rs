//! Where a client wants to be led: to readers or writers, apart from the port that it came to, by a
//! database name with the suffix for readers, or by the startup parameter `pgherd.route`; and to
//! which database.

use pgproto::lowered::option_settings;
use pgproto::wire::{Startup, startup_packet};
use route::Port;

/// The parameter that says it, alone or in `options`.
const PARAMETER: &str = "pgherd.route";

/// Why a wish cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoSuchRoute {
    /// It names no route.
    #[error("{PARAMETER} is \"{0}\"; it must be read-only or read-write")]
    Unknown(String),
    /// The packet with the database's own name cannot be written.
    #[error("the startup packet cannot be written with the database \"{0}\"")]
    Database(String),
}

/// What a client has chosen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// The port that it is served as.
    pub(crate) port: Port,
    /// The database as clients call it.
    pub(crate) database: String,
    /// Its startup packet as the server may have it, read and as bytes.
    pub(crate) startup: Startup,
    pub(crate) packet: Vec<u8>,
}

/// What the client has chosen. `dbname` says what servers call a database, by what clients call it.
///
/// # Errors
/// [`NoSuchRoute`].
pub(crate) fn choose(
    came_to: Port,
    mut startup: Startup,
    packet: Vec<u8>,
    read_only_suffix: Option<&str>,
    dbname: impl FnOnce(&str) -> String,
) -> Result<Chosen, NoSuchRoute> {
    let mut port = came_to;
    let user = startup.parameter("user").unwrap_or_default();
    let said = startup.parameter("database").unwrap_or(user).to_owned();
    let stripped = read_only_suffix.and_then(|suffix| said.strip_suffix(suffix));
    let stripped = stripped.filter(|own| !own.is_empty());
    if stripped.is_some() {
        port = Port::ReadOnly;
    }
    let database = stripped.unwrap_or(&said).to_owned();
    let options = option_settings(startup.parameter("options").unwrap_or_default());
    let in_options = options.iter().rev().find(|(name, _)| name == PARAMETER);
    let wish = startup.parameter(PARAMETER).or(in_options.map(|(_, value)| value.as_str()));
    match wish {
        None => {}
        Some("read-only") => port = Port::ReadOnly,
        Some("read-write") => port = Port::ReadWrite,
        Some(other) => return Err(NoSuchRoute::Unknown(other.to_owned())),
    }
    let dbname = dbname(&database);
    if dbname == said {
        return Ok(Chosen { port, database, startup, packet });
    }
    startup.parameters.retain(|(name, _)| name != "database");
    startup.parameters.push(("database".to_owned(), dbname));
    let pairs: Vec<(&str, &str)> =
        startup.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let Some(packet) = startup_packet(startup.minor, &pairs) else {
        return Err(NoSuchRoute::Database(database));
    };
    Ok(Chosen { port, database, startup, packet })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The port, what clients call the database, and what its server does. `shop` is `till` there.
    fn chosen(parameters: &[(&str, &str)]) -> Result<(Port, String, String), NoSuchRoute> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let startup = Startup { minor: 0, parameters: parameters.iter().map(owned).collect() };
        let packet = startup_packet(0, parameters).unwrap();
        let there = |name: &str| if name == "shop" { "till" } else { name }.to_owned();
        let chosen = choose(Port::ReadWrite, startup, packet, Some("_ro"), there)?;
        let Chosen { port, database, startup, packet } = chosen;
        let pairs: Vec<(&str, &str)> =
            startup.parameters.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(startup_packet(0, &pairs).unwrap(), packet, "both say the same");
        Ok((port, database, startup.parameter("database").unwrap_or_default().to_owned()))
    }

    #[test]
    fn suffix_and_parameter_choose() {
        use Port::{ReadOnly, ReadWrite};
        let to = |port, asked: &str, there: &str| Ok((port, asked.to_owned(), there.to_owned()));
        assert_eq!(chosen(&[("user", "u")]), to(ReadWrite, "u", ""), "unchanged");
        let database = |name| chosen(&[("user", "u"), ("database", name)]);
        assert_eq!(database("d"), to(ReadWrite, "d", "d"));
        assert_eq!(database("d_ro"), to(ReadOnly, "d", "d"));
        assert_eq!(database("_ro"), to(ReadWrite, "_ro", "_ro"));
        assert_eq!(database("shop"), to(ReadWrite, "shop", "till"));
        assert_eq!(database("shop_ro"), to(ReadOnly, "shop", "till"));
        assert_eq!(chosen(&[("user", "shop")]), to(ReadWrite, "shop", "till"), "as the default");
        assert_eq!(chosen(&[("user", "u_ro")]), to(ReadOnly, "u", "u"), "as the default");
        let options = [("user", "u"), ("options", "-c pgherd.route=read-only")];
        assert_eq!(chosen(&options), to(ReadOnly, "u", ""));
        let both = [("user", "u"), ("database", "d_ro"), ("pgherd.route", "read-write")];
        assert_eq!(chosen(&both), to(ReadWrite, "d", "d"), "the parameter counts");
        let wrong = chosen(&[("user", "u"), ("pgherd.route", "any")]);
        assert_eq!(wrong, Err(NoSuchRoute::Unknown("any".to_owned())));
    }
}
