//! Small typed texts: secrets and addresses.

/// A password or key. It prints as `***` (I6).
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The secret itself; only for the wire or a protected file.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl std::fmt::Display for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// A host (or, to listen on, a comma-separated list, or `*`) and a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// Name or address, without brackets. `*` for all addresses.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl HostPort {
    /// Reads `host:port`, `[v6]:port`, `*:port` or `:port`; with `default_port` also a bare host.
    #[must_use]
    pub fn parse(text: &str, default_port: Option<u16>) -> Option<HostPort> {
        let text = text.trim();
        let (host, port) = match text.rsplit_once(':') {
            // A bare IPv6 address has colons but no port.
            Some((host, port)) if !port.ends_with(']') && !is_bare_v6(text) => {
                (host, port.parse::<u16>().ok().filter(|p| *p > 0)?)
            }
            Some(_) | None => (text, default_port?),
        };
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']')?,
            None => host,
        };
        let host = if host.is_empty() { "*" } else { host };
        let clean = !host.contains(['/', '@', '[', ']']) && !host.contains(char::is_whitespace);
        clean.then(|| HostPort { host: host.to_owned(), port })
    }

    /// Whether it stands for every address of the machine: nobody can connect to such a name.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.hosts().iter().any(|host| matches!(*host, "*" | "0.0.0.0" | "::"))
    }

    /// The hosts of a list to listen on.
    #[must_use]
    pub fn hosts(&self) -> Vec<&str> {
        self.host.split(',').map(str::trim).filter(|h| !h.is_empty()).collect()
    }
}

fn is_bare_v6(text: &str) -> bool {
    text.parse::<std::net::Ipv6Addr>().is_ok()
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if is_bare_v6(&self.host) {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host_port(text: &str) -> Option<(String, u16)> {
        HostPort::parse(text, None).map(|a| (a.host, a.port))
    }

    #[test]
    fn addresses() {
        assert_eq!(host_port("db1:5432"), Some(("db1".to_owned(), 5432)));
        assert_eq!(host_port("[::1]:80"), Some(("::1".to_owned(), 80)));
        assert_eq!(host_port("*:80"), Some(("*".to_owned(), 80)));
        assert_eq!(host_port(":80"), Some(("*".to_owned(), 80)));
        assert_eq!(host_port("10.0.0.1,::1:80"), Some(("10.0.0.1,::1".to_owned(), 80)));
        for bad in ["db1", "db1:0", "db1:x", "http://db1:5", "a b:5", "::1"] {
            assert_eq!(host_port(bad), None, "{bad}");
        }
        let bare = HostPort::parse("::1", Some(2379)).expect("a bare address");
        assert_eq!(bare.to_string(), "[::1]:2379");
    }

    #[test]
    fn secrets_do_not_show() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
    }
}
