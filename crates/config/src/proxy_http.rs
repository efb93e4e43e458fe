//! `pgherd.proxy.http`: where the proxy says by HTTP how it is, and who may ask.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::problem::Problem;
use crate::sections::CertificateFiles;
use crate::text::HostPort;
use crate::tree::Node;
use crate::values;

const LISTEN: &str = "pgherd.proxy.http";
const USERNAME: &str = "pgherd.proxy.http_username";
const PASSWORD_FILE: &str = "pgherd.proxy.http_password_file";
const CERT: &str = "pgherd.proxy.http_tls.cert";
const KEY: &str = "pgherd.proxy.http_tls.key";
const CA: &str = "pgherd.proxy.http_tls.ca";

/// `pgherd.proxy.http`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyHttp {
    /// Where it listens. Elsewhere than on loopback whoever asks has to show who he is.
    pub listen: HostPort,
    /// Whom it answers; `None`: whoever comes.
    pub user: Option<HttpUser>,
    /// What it is over TLS; `None`: plain HTTP.
    pub certificate: Option<CertificateFiles>,
    /// Who stands behind clients' certificates; `None`: clients are not asked for one.
    pub ca: Option<PathBuf>,
}

/// Who may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpUser {
    /// His name.
    pub username: String,
    /// A file with his password.
    pub password_file: PathBuf,
}

impl ProxyHttp {
    /// Reads the keys; what is wrong joins `problems`.
    pub(crate) fn read(tree: &Node, problems: &mut Vec<Problem>) -> Option<ProxyHttp> {
        let text = |key: &str| tree.at(key).and_then(values::text).filter(|text| !text.is_empty());
        let mut wrong = |key: &str, what: &str| {
            problems.push(Problem::new(tree.place_of(key), key, what));
        };
        let listen = text(LISTEN).and_then(|text| HostPort::parse(&text, None));
        let Some(listen) = listen else {
            let others = [USERNAME, PASSWORD_FILE, CERT, KEY, CA];
            let idle = others.into_iter().filter(|key| tree.at(key).is_some());
            idle.for_each(|key| wrong(key, "is of no use without pgherd.proxy.http"));
            return None;
        };
        let user = match (text(USERNAME), text(PASSWORD_FILE).map(PathBuf::from)) {
            (Some(username), Some(password_file)) => Some(HttpUser { username, password_file }),
            (None, None) => None,
            (Some(_), None) => {
                wrong(PASSWORD_FILE, "is required by http_username");
                None
            }
            (None, Some(_)) => {
                wrong(USERNAME, "is required by http_password_file");
                None
            }
        };
        let ca = text(CA).map(PathBuf::from);
        if ca.is_some() && text(CERT).is_none() {
            wrong(CA, "is of no use without http_tls.cert");
        }
        let named = user.is_some() || text(USERNAME).is_some() || text(PASSWORD_FILE).is_some();
        if !is_local(&listen) && !named && ca.is_none() {
            let what = "others than this host reach it: set http_username and http_password_file, \
                        or http_tls with cert and ca, or listen on 127.0.0.1";
            wrong(LISTEN, what);
        }
        let certificate = CertificateFiles::read(tree, CERT, KEY, problems);
        Some(ProxyHttp { listen, user, certificate, ca })
    }
}

/// Whether it can be reached from this host alone.
fn is_local(listen: &HostPort) -> bool {
    let loopback = |host: &str| {
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    !listen.is_wildcard() && listen.hosts().into_iter().all(loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(section: &str) -> (Option<ProxyHttp>, Vec<String>) {
        let tree = Node::from_yaml(&format!("pgherd: {{proxy: {{{section}}}}}"), 0).expect("YAML");
        let mut problems = Vec::new();
        let read = ProxyHttp::read(&tree, &mut problems);
        (read, problems.iter().map(Problem::to_string).collect())
    }

    #[test]
    fn on_loopback_nobody_has_to_show_who_he_is() {
        assert_eq!(read("name: p"), (None, Vec::new()));
        for host in ["127.0.0.1", "127.8.0.1", "localhost", "[::1]"] {
            let (http, problems) = read(&format!("http: '{host}:9127'"));
            let (http, none) = (http.expect("given"), Vec::<String>::new());
            assert_eq!((http.listen.port, problems), (9127, none), "{host}");
            assert_eq!((http.user, http.certificate, http.ca), (None, None, None));
        }
    }

    #[test]
    fn elsewhere_he_has_to() {
        for good in [
            "http: 0.0.0.0:1, http_username: a, http_password_file: /p",
            "http: db1:1, http_tls: {cert: /c, key: /k, ca: /ca}",
        ] {
            let (http, problems) = read(good);
            assert_eq!(problems, Vec::<String>::new(), "{good}");
            let http = http.expect("given");
            assert!(http.user.is_some() || http.ca.is_some(), "{good}");
        }
        for (bad, says) in [
            ("http: 0.0.0.0:1", "http: others than this host reach it"),
            ("http: ':1'", "http: others than this host reach it"),
            ("http: '127.0.0.1,10.0.0.1:1'", "http: others than this host reach it"),
            ("http: 10.0.0.1:1, http_tls: {cert: /c}", "http: others than this host reach it"),
            ("http: 10.0.0.1:1, http_username: a", "http_password_file: is required"),
            ("http: 127.0.0.1:1, http_password_file: /p", "http_username: is required"),
            ("http: 127.0.0.1:1, http_tls: {ca: /c}", "http_tls.ca: is of no use without http_tls"),
            ("http: 127.0.0.1:1, http_tls: {key: /c}", "http_tls.key: is of no use without"),
            ("http_username: a", "http_username: is of no use without pgherd.proxy.http"),
            ("http_tls: {cert: /c}", "http_tls.cert: is of no use without pgherd.proxy.http"),
        ] {
            let (_, problems) = read(bad);
            assert_eq!(problems.len(), 1, "{bad}: {problems:?}");
            assert!(problems[0].contains(says), "{bad}: {problems:?}");
        }
    }
}
