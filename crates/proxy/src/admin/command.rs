//! The commands that operators give.

use route::ClientId;

/// What `SHOW` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    Clients,
    Config,
    Databases,
    Help,
    Lists,
    Pools,
    Servers,
    Stats,
    StatsTotals,
    Version,
}

/// A command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// An empty one.
    Nothing,
    Show(Subject),
    Pause,
    Resume,
    Reconnect,
    Reload,
    Kill(ClientId),
}

/// What `SHOW HELP` says.
pub(super) const HELP: &str = "\
Console usage\n\
\tSHOW CLIENTS|CONFIG|DATABASES|HELP|LISTS|POOLS|SERVERS|STATS|STATS_TOTALS|VERSION\n\
\tPAUSE\n\
\tRESUME\n\
\tRECONNECT\n\
\tRELOAD\n\
\tKILL <ptr of a client in SHOW CLIENTS>";

/// Reads a command; `None` if it is none.
pub(super) fn parse(text: &str) -> Option<Order> {
    let text = text.trim();
    let text = text.strip_suffix(';').unwrap_or(text).trim_end().to_ascii_lowercase();
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    Some(match words.as_slice() {
        [] => Order::Nothing,
        ["show"] => Order::Show(Subject::Help),
        ["show", subject] => Order::Show(self::subject(subject)?),
        ["pause"] => Order::Pause,
        ["resume"] => Order::Resume,
        ["reconnect"] => Order::Reconnect,
        ["reload"] => Order::Reload,
        ["kill", client] => Order::Kill(ClientId(client.parse().ok()?)),
        _ => return None,
    })
}

fn subject(word: &str) -> Option<Subject> {
    Some(match word {
        "clients" => Subject::Clients,
        "config" => Subject::Config,
        "databases" => Subject::Databases,
        "help" => Subject::Help,
        "lists" => Subject::Lists,
        "pools" => Subject::Pools,
        "servers" => Subject::Servers,
        "stats" => Subject::Stats,
        "stats_totals" => Subject::StatsTotals,
        "version" => Subject::Version,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_in_any_case() {
        for (text, order) in [
            ("SHOW POOLS", Some(Order::Show(Subject::Pools))),
            (" show\n Stats_Totals ; ", Some(Order::Show(Subject::StatsTotals))),
            ("SHOW", Some(Order::Show(Subject::Help))),
            ("", Some(Order::Nothing)),
            (";", Some(Order::Nothing)),
            ("Pause;", Some(Order::Pause)),
            ("RESUME", Some(Order::Resume)),
            ("RECONNECT", Some(Order::Reconnect)),
            ("reload", Some(Order::Reload)),
            ("KILL 17;", Some(Order::Kill(ClientId(17)))),
            ("KILL", None),
            ("KILL shop", None),
            ("KILL -1", None),
            ("PAUSE shop", None),
            ("SHOW POOLS; SHOW STATS", None),
            ("SHOW FDS", None),
            ("SELECT 1", None),
            (";;", None),
        ] {
            assert_eq!(parse(text), order, "{text}");
        }
    }
}
