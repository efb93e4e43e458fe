//! The section `etcd3`: for agents, proxies and commands alike.

use std::path::PathBuf;

use crate::problem::{ConfigError, Problem};
use crate::sections::{CertificateFiles, Etcd};
use crate::sources::{Sources, named};
use crate::text::{HostPort, Secret};
use crate::tree::Node;
use crate::values;

const PORT_DEFAULT: u16 = 2379;

/// The keys that hold one endpoint as a URL; the first that is there counts.
const URLS: [&str; 2] = ["etcd3.proxy", "etcd3.url"];

/// An endpoint of etcd as a URL.
struct Url {
    https: bool,
    /// Without user and path.
    address: String,
    credentials: Option<(String, Option<Secret>)>,
}

impl Url {
    /// `http[s]://[user[:password]@]host[:port][/…]`; user and password stand there as they are, as
    /// Patroni reads them.
    fn of(text: &str) -> Url {
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
        let (who, address) = match authority.rsplit_once('@') {
            Some((who, address)) => (Some(who), address),
            None => (None, authority),
        };
        let credentials = who.filter(|who| !who.is_empty()).map(|who| match who.split_once(':') {
            Some((user, password)) => (user.to_owned(), Some(Secret::new(password))),
            None => (who.to_owned(), None),
        });
        let https = scheme.eq_ignore_ascii_case("https");
        Url { https, address: address.to_owned(), credentials }
    }
}

impl Etcd {
    /// Reads this section alone; `None` if it is not there.
    ///
    /// # Errors
    /// A text is no YAML mapping, or the section is wrong: every problem in it.
    pub fn of(sources: &Sources) -> Result<Option<Etcd>, ConfigError> {
        let (tree, names) = sources.read()?;
        if tree.at("etcd3").is_none() {
            return Ok(None);
        }
        let mut problems = Vec::new();
        match read(&tree, &mut problems) {
            Some(etcd) if problems.is_empty() => Ok(Some(etcd)),
            Some(_) | None => Err(ConfigError { problems: named(problems, &names) }),
        }
    }
}

/// Reads it; what is wrong with it goes to `problems`.
pub(crate) fn read(tree: &Node, problems: &mut Vec<Problem>) -> Option<Etcd> {
    Reader { tree, problems }.section()
}

struct Reader<'a> {
    tree: &'a Node,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn error(&mut self, key: &str, text: impl Into<String>) {
        self.problems.push(Problem::new(self.tree.place_of(key), key, text));
    }

    fn text(&self, key: &str) -> Option<String> {
        self.tree.at(key).and_then(values::text)
    }

    fn section(&mut self) -> Option<Etcd> {
        let https = self.text("etcd3.protocol").is_some_and(|p| p.eq_ignore_ascii_case("https"));
        let (key, url) = match URLS.iter().find_map(|key| Some((*key, self.text(key)?))) {
            Some((key, text)) => (key, Some(Url::of(text.trim()))),
            None => ("etcd3.url", None),
        };
        let tls = url.as_ref().map_or(https, |url| url.https);
        let credentials = url.as_ref().and_then(|url| url.credentials.clone());
        let (key, texts) = match url {
            Some(url) => (key, vec![url.address]),
            None => self.addresses()?,
        };
        let default_port = self.port();
        let mut endpoints = Vec::new();
        for text in texts {
            let plain = ["http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme));
            let plain = plain.unwrap_or(&text).trim_end_matches('/');
            match HostPort::parse(plain, Some(default_port)).filter(|a| !a.is_wildcard()) {
                Some(address) if !endpoints.contains(&address) => endpoints.push(address),
                Some(_) => {}
                None => self.error(key, format!("{plain:?} is not host:port")),
            }
        }
        let (username, password) = match credentials {
            Some((username, password)) => (Some(username), password),
            None => (self.text("etcd3.username"), self.text("etcd3.password").map(Secret::new)),
        };
        if username.is_some() != password.is_some() {
            self.error("etcd3", "username and password must be given together");
        }
        let cacert = self.text("etcd3.cacert").map(PathBuf::from);
        let certificate =
            CertificateFiles::read(self.tree, "etcd3.cert", "etcd3.key", self.problems);
        let etcd = Etcd { endpoints, tls, cacert, certificate, username, password };
        (!etcd.endpoints.is_empty()).then_some(etcd)
    }

    /// The addresses as written, and the key they come from.
    fn addresses(&mut self) -> Option<(&'static str, Vec<String>)> {
        let hosts = self.tree.at("etcd3.hosts").and_then(values::comma_list);
        if let Some(hosts) = hosts.filter(|hosts| !hosts.is_empty()) {
            return Some(("etcd3.hosts", hosts));
        }
        if let Some(host) = self.text("etcd3.host") {
            return Some(("etcd3.host", vec![host]));
        }
        self.error("etcd3", "is required: the etcd members under etcd3.hosts");
        None
    }

    fn port(&mut self) -> u16 {
        let Some(port) = self.tree.at("etcd3.port").and_then(values::integer) else {
            return PORT_DEFAULT;
        };
        u16::try_from(port).unwrap_or_else(|_| {
            self.error("etcd3.port", "must be 1 to 65535");
            PORT_DEFAULT
        })
    }
}
