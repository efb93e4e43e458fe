//! Where a client wants to be led, apart from the port that it came to: a database name with the
//! suffix for readers, or the startup parameter `pgherd.route`.

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

/// The port that the client is served as, its startup packet as the server may have it, read and as
/// bytes.
///
/// # Errors
/// [`NoSuchRoute`].
pub(crate) fn choose(
    came_to: Port,
    mut startup: Startup,
    packet: Vec<u8>,
    read_only_suffix: Option<&str>,
) -> Result<(Port, Startup, Vec<u8>), NoSuchRoute> {
    let mut port = came_to;
    let mut changed = false;
    let user = startup.parameter("user").unwrap_or_default();
    let database = startup.parameter("database").unwrap_or(user);
    let stripped = read_only_suffix.and_then(|suffix| database.strip_suffix(suffix));
    if let Some(own) = stripped.filter(|own| !own.is_empty()).map(str::to_owned) {
        port = Port::ReadOnly;
        startup.parameters.retain(|(name, _)| name != "database");
        startup.parameters.push(("database".to_owned(), own));
        changed = true;
    }
    let options = option_settings(startup.parameter("options").unwrap_or_default());
    let in_options = options.iter().rev().find(|(name, _)| name == PARAMETER);
    let wish = startup.parameter(PARAMETER).or(in_options.map(|(_, value)| value.as_str()));
    match wish {
        None => {}
        Some("read-only") => port = Port::ReadOnly,
        Some("read-write") => port = Port::ReadWrite,
        Some(other) => return Err(NoSuchRoute::Unknown(other.to_owned())),
    }
    if !changed {
        return Ok((port, startup, packet));
    }
    let pairs: Vec<(&str, &str)> =
        startup.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let Some(packet) = startup_packet(startup.minor, &pairs) else {
        return Err(NoSuchRoute::Database(database_of(&startup)));
    };
    Ok((port, startup, packet))
}

fn database_of(startup: &Startup) -> String {
    startup.parameter("database").unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(parameters: &[(&str, &str)]) -> Result<(Port, String), NoSuchRoute> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let startup = Startup { minor: 0, parameters: parameters.iter().map(owned).collect() };
        let packet = startup_packet(0, parameters).unwrap();
        let (port, startup, packet) = choose(Port::ReadWrite, startup, packet, Some("_ro"))?;
        let pairs: Vec<(&str, &str)> =
            startup.parameters.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(startup_packet(0, &pairs).unwrap(), packet, "both say the same");
        Ok((port, startup.parameter("database").unwrap_or_default().to_owned()))
    }

    #[test]
    fn suffix_and_parameter_choose() {
        let to = |port, database: &str| Ok((port, database.to_owned()));
        assert_eq!(chosen(&[("user", "u")]), to(Port::ReadWrite, ""));
        assert_eq!(chosen(&[("user", "u"), ("database", "d")]), to(Port::ReadWrite, "d"));
        assert_eq!(chosen(&[("user", "u"), ("database", "d_ro")]), to(Port::ReadOnly, "d"));
        assert_eq!(chosen(&[("user", "u"), ("database", "_ro")]), to(Port::ReadWrite, "_ro"));
        assert_eq!(chosen(&[("user", "u_ro")]), to(Port::ReadOnly, "u"), "as the default");
        let options = [("user", "u"), ("options", "-c pgherd.route=read-only")];
        assert_eq!(chosen(&options), to(Port::ReadOnly, ""));
        let both = [("user", "u"), ("database", "d_ro"), ("pgherd.route", "read-write")];
        assert_eq!(chosen(&both), to(Port::ReadWrite, "d"), "the parameter counts");
        let wrong = chosen(&[("user", "u"), ("pgherd.route", "any")]);
        assert_eq!(wrong, Err(NoSuchRoute::Unknown("any".to_owned())));
    }
}
