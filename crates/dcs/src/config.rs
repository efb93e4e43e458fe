//! What a client needs to know, and its validation.

use types::Millis;

use crate::error::Error;

/// More endpoints than this are a mistake in the configuration.
const ENDPOINTS_MAX: usize = 32;

/// How to reach etcd.
#[derive(Clone)]
pub struct ClientConfig {
    /// `host:port`, one per member; with or without `http://` (`https://` where TLS is).
    pub endpoints: Vec<String>,
    /// User, if etcd's authentication is on.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<String>,
    /// How TLS is spoken; `None`: not at all.
    pub tls: Option<tls::ClientSettings>,
    /// Upper bound of every operation, attempts included.
    pub retry_timeout: Millis,
    /// Shuffles the endpoints' order; `None` takes the clock.
    pub seed: Option<u64>,
}

impl std::fmt::Debug for ClientConfig {
    // The password stays out of every log (I6).
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientConfig")
            .field("endpoints", &self.endpoints)
            .field("username", &self.username)
            .field("retry_timeout", &self.retry_timeout)
            .finish_non_exhaustive()
    }
}

impl ClientConfig {
    /// A configuration without authentication.
    #[must_use]
    pub fn new(endpoints: Vec<String>, retry_timeout: Millis) -> ClientConfig {
        ClientConfig {
            endpoints,
            username: None,
            password: None,
            tls: None,
            retry_timeout,
            seed: None,
        }
    }

    /// Checks everything that can be checked without a connection.
    ///
    /// # Errors
    /// [`Error::Config`] with one line that names the setting.
    pub fn validate(&self) -> Result<(), Error> {
        self.urls()?;
        if self.retry_timeout == Millis::ZERO {
            return Err(Error::Config("retry_timeout must be above 0".to_owned()));
        }
        if self.username.is_some() != self.password.is_some() {
            let text = "etcd username and password must be given together";
            return Err(Error::Config(text.to_owned()));
        }
        Ok(())
    }

    /// The endpoints as URLs, without duplicates, in the order given.
    pub(crate) fn urls(&self) -> Result<Vec<String>, Error> {
        let mut urls: Vec<String> = Vec::new();
        for text in &self.endpoints {
            let url = endpoint_url(text, self.tls.is_some())?;
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        if urls.is_empty() {
            return Err(Error::Config("no etcd endpoint is given".to_owned()));
        }
        if urls.len() > ENDPOINTS_MAX {
            let text = format!("more than {ENDPOINTS_MAX} etcd endpoints are given");
            return Err(Error::Config(text));
        }
        Ok(urls)
    }
}

fn endpoint_url(text: &str, tls: bool) -> Result<String, Error> {
    let text = text.trim();
    let bad = |why: &str| Err(Error::Config(format!("etcd endpoint {text:?}: {why}")));
    let scheme = if tls { "https" } else { "http" };
    let authority = match text.split_once("://") {
        Some((given, rest)) if given == scheme => rest,
        Some(("http" | "https", _)) => return bad("TLS is for all endpoints, or for none"),
        Some(_) => return bad("only http:// and https:// are understood"),
        None => text,
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if authority.contains(['/', '?', '#', '@']) || authority.contains(char::is_whitespace) {
        return bad("only host and port may follow http://");
    }
    let port = authority.rsplit_once(':').map(|(host, port)| {
        let host_is_given = !host.is_empty();
        host_is_given && port.parse::<u16>().is_ok_and(|p| p > 0)
    });
    if port != Some(true) {
        return bad("host:port is needed, such as 10.0.0.1:2379");
    }
    Ok(format!("{scheme}://{authority}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(endpoint: &str) -> Result<Vec<String>, String> {
        let config = ClientConfig::new(vec![endpoint.to_owned()], Millis(1));
        config.urls().map_err(|e| e.to_string())
    }

    #[test]
    fn endpoints_come_with_or_without_scheme() {
        let expected = Ok(vec!["http://10.0.0.1:2379".to_owned()]);
        assert_eq!(check("10.0.0.1:2379"), expected);
        assert_eq!(check("http://10.0.0.1:2379/"), expected);
        assert_eq!(check("[::1]:2379"), Ok(vec!["http://[::1]:2379".to_owned()]));
    }

    #[test]
    fn bad_endpoints_are_named() {
        for (endpoint, word) in [
            ("https://h:2379", "TLS"),
            ("h", "host:port"),
            ("http://h:2379/v3", "only host and port"),
            ("http://u@h:2379", "only host and port"),
            ("h:0", "host:port"),
            ("ftp://h:1", "http://"),
        ] {
            let error = check(endpoint).expect_err("bad endpoint");
            assert!(error.contains(word) && error.contains(endpoint), "{error}");
        }
    }

    #[test]
    fn passwords_are_not_printed() {
        let mut config = ClientConfig::new(vec!["h:1".to_owned()], Millis(1));
        config.username = Some("u".to_owned());
        assert!(config.validate().is_err());
        config.password = Some("hush".to_owned());
        assert!(config.validate().is_ok());
        assert!(!format!("{config:?}").contains("hush"));
    }
}
