//! Who may use a proxy, and how its connections are secured: of `pgherd.proxy` the keys about
//! authentication, TLS and the PROXY protocol.

use std::path::PathBuf;

use crate::check::word;
use crate::problem::Problem;
use crate::sections::CertificateFiles;
use crate::tree::Node;
use crate::values;

const SECTION: &str = "pgherd.proxy";
const DATABASE_DEFAULT: &str = "postgres";

/// PgBouncer's default but for roles whose password is no longer valid.
pub(crate) const AUTH_QUERY_DEFAULT: &str = "SELECT usename, passwd FROM pg_catalog.pg_shadow \
     WHERE usename = $1 AND (valuntil IS NULL OR valuntil > now())";

/// Words of `auth`, in the order of [`ProxyAuth`].
pub(crate) const AUTHS: &[&str] =
    &["pass_through", "scram-sha-256", "md5", "cert", "trust", "rules"];
pub(crate) const CLIENT_TLS_MODES: &[&str] = &["disable", "allow", "require"];
pub(crate) const SERVER_TLS_MODES: &[&str] =
    &["disable", "prefer", "require", "verify-ca", "verify-full"];
pub(crate) const PROXY_PROTOCOL_IN: &[&str] = &["off", "require"];
pub(crate) const PROXY_PROTOCOL_OUT: &[&str] = &["off", "v1", "v2"];

/// `auth`: how clients authenticate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ProxyAuth {
    /// To the server, through the proxy, which learns nothing. Session mode only.
    #[default]
    PassThrough,
    /// To the proxy by SCRAM.
    Scram,
    /// To the proxy by MD5, or by SCRAM where a verifier of SCRAM is stored.
    Md5,
    /// To the proxy by a certificate.
    Cert,
    /// Not at all.
    Trust,
    /// As the first rule of this file says that fits.
    Rules(PathBuf),
}

/// How a client shows the proxy that it is whom it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AuthMethod {
    /// Not at all.
    Trust,
    /// By its password as it is.
    Password,
    /// By MD5, or by SCRAM where a verifier is stored.
    Md5,
    /// By SCRAM.
    Scram,
    /// By its certificate.
    Cert,
}

impl ProxyAuth {
    /// The method of all clients, where there is one.
    #[must_use]
    pub fn method(&self) -> Option<AuthMethod> {
        match self {
            ProxyAuth::PassThrough | ProxyAuth::Rules(_) => None,
            ProxyAuth::Scram => Some(AuthMethod::Scram),
            ProxyAuth::Md5 => Some(AuthMethod::Md5),
            ProxyAuth::Cert => Some(AuthMethod::Cert),
            ProxyAuth::Trust => Some(AuthMethod::Trust),
        }
    }
}

/// Where the proxy asks for what a server stores of passwords.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthQuery {
    /// The query; `$1` is the user. It gives name and stored password.
    pub query: String,
    /// Whom it is run as.
    pub user: String,
    /// A file with that user's password; `None`: it is in `users_file`, or none is needed.
    pub password_file: Option<PathBuf>,
    /// The database that it is run in.
    pub database: String,
}

/// `tls.mode`: TLS of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientTlsMode {
    /// A client that asks for it is told no.
    #[default]
    Disable,
    /// For clients that want it.
    Allow,
    /// Who comes without it is refused.
    Require,
}

/// `tls`: TLS of clients.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientTls {
    /// Whether there is any.
    pub mode: ClientTlsMode,
    /// What the proxy shows; there unless the mode is [`ClientTlsMode::Disable`].
    pub certificate: Option<CertificateFiles>,
    /// Who stands behind clients' certificates; `None`: clients are not asked for one.
    pub ca: Option<PathBuf>,
}

/// `server_tls.mode`: libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServerTlsMode {
    /// No TLS.
    #[default]
    Disable,
    /// TLS where the server has it; its certificate is not looked at.
    Prefer,
    /// TLS; the certificate is held against `ca` where there is one, as libpq does.
    Require,
    /// TLS with a certificate of an authority of ours.
    VerifyCa,
    /// And that is for the host that is dialled.
    VerifyFull,
}

/// `server_tls`: TLS of the connections to servers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerTls {
    /// Whether there is any, and what a certificate has to be.
    pub mode: ServerTlsMode,
    /// Who stands behind servers' certificates; `None`: the system's authorities.
    pub ca: Option<PathBuf>,
    /// Revocation lists: a file, or a directory of files.
    pub crl: Option<PathBuf>,
    /// What the proxy shows to servers that ask.
    pub certificate: Option<CertificateFiles>,
}

/// The versions of HAProxy's PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Authentication, TLS and PROXY protocol of a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxySecurity {
    /// How clients authenticate.
    pub auth: ProxyAuth,
    /// Stored passwords, in the format of PgBouncer's userlist.txt.
    pub users_file: Option<PathBuf>,
    /// Where to ask for the passwords of users that are not in the file.
    pub auth_query: Option<AuthQuery>,
    /// TLS of clients.
    pub tls: ClientTls,
    /// TLS of servers.
    pub server_tls: ServerTls,
    /// Whether every client's connection begins with a header of the PROXY protocol.
    pub proxy_protocol_in: bool,
    /// What servers are told of the client's address, if anything.
    pub proxy_protocol_out: Option<ProxyProtocol>,
}

impl ProxySecurity {
    /// Reads the keys; what is wrong joins `problems`.
    pub(crate) fn read(tree: &Node, problems: &mut Vec<Problem>) -> ProxySecurity {
        let mut reader = Reader { tree, problems };
        let auth = reader.auth();
        let passes = auth == ProxyAuth::PassThrough;
        let read = ProxySecurity {
            users_file: reader.path("users_file"),
            auth_query: reader.auth_query(),
            tls: reader.client_tls(),
            server_tls: reader.server_tls(passes),
            proxy_protocol_in: reader.word("proxy_protocol.in", PROXY_PROTOCOL_IN)
                == Some("require"),
            proxy_protocol_out: match reader.word("proxy_protocol.out", PROXY_PROTOCOL_OUT) {
                Some("v1") => Some(ProxyProtocol::V1),
                Some("v2") => Some(ProxyProtocol::V2),
                Some(_) | None => None,
            },
            auth,
        };
        reader.together(&read);
        read
    }

    /// Whether the proxy has stored passwords to look at.
    #[must_use]
    pub fn has_stored_passwords(&self) -> bool {
        self.users_file.is_some() || self.auth_query.is_some()
    }
}

struct Reader<'a> {
    tree: &'a Node,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn error(&mut self, key: &str, text: &str) {
        let key = format!("{SECTION}.{key}");
        self.problems.push(Problem::new(self.tree.place_of(&key), key, text));
    }

    fn text(&self, key: &str) -> Option<String> {
        let text = self.tree.at(&format!("{SECTION}.{key}")).and_then(values::text);
        text.filter(|text| !text.trim().is_empty())
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    fn word(&self, key: &str, words: &[&'static str]) -> Option<&'static str> {
        word(self.tree.at(&format!("{SECTION}.{key}"))?, words)
    }

    fn certificate(&mut self, section: &str) -> Option<CertificateFiles> {
        let key = |name: &str| format!("{SECTION}.{section}.{name}");
        CertificateFiles::read(self.tree, &key("cert"), &key("key"), self.problems)
    }

    fn auth(&mut self) -> ProxyAuth {
        let rules_file = self.path("rules_file");
        let auth = match self.word("auth", AUTHS) {
            Some("scram-sha-256") => ProxyAuth::Scram,
            Some("md5") => ProxyAuth::Md5,
            Some("cert") => ProxyAuth::Cert,
            Some("trust") => ProxyAuth::Trust,
            Some("rules") => match rules_file {
                Some(file) => return ProxyAuth::Rules(file),
                None => {
                    self.error("rules_file", "is required by auth: rules");
                    ProxyAuth::PassThrough
                }
            },
            Some(_) | None => ProxyAuth::PassThrough,
        };
        if rules_file.is_some() {
            self.error("rules_file", "is of no use without auth: rules");
        }
        auth
    }

    fn auth_query(&mut self) -> Option<AuthQuery> {
        let query = self.text("auth_query");
        let Some(user) = self.text("auth_user") else {
            for key in ["auth_query", "auth_password_file", "auth_database"] {
                if self.text(key).is_some() {
                    self.error(key, "is of no use without auth_user");
                }
            }
            return None;
        };
        if query.as_ref().is_some_and(|query| !query.contains("$1")) {
            self.error("auth_query", "must ask for one user, whose name stands for $1");
        }
        Some(AuthQuery {
            query: query.unwrap_or_else(|| AUTH_QUERY_DEFAULT.to_owned()),
            user,
            password_file: self.path("auth_password_file"),
            database: self.text("auth_database").unwrap_or_else(|| DATABASE_DEFAULT.to_owned()),
        })
    }

    fn client_tls(&mut self) -> ClientTls {
        let mode = match self.word("tls.mode", CLIENT_TLS_MODES) {
            Some("allow") => ClientTlsMode::Allow,
            Some("require") => ClientTlsMode::Require,
            Some(_) | None => ClientTlsMode::Disable,
        };
        let certificate = self.certificate("tls");
        let ca = self.path("tls.ca");
        if mode != ClientTlsMode::Disable && certificate.is_none() {
            self.error("tls.cert", "is required by tls.mode allow and require");
        }
        if mode == ClientTlsMode::Disable && (certificate.is_some() || ca.is_some()) {
            self.error("tls.mode", "must be allow or require for the other keys to be of use");
        }
        ClientTls { mode, certificate, ca }
    }

    /// `passes`: clients authenticate to the server. By default their connections stay as they
    /// were, without TLS; libpq's default is `prefer`.
    fn server_tls(&mut self, passes: bool) -> ServerTls {
        let mode = match self.word("server_tls.mode", SERVER_TLS_MODES) {
            Some("disable") => ServerTlsMode::Disable,
            Some("require") => ServerTlsMode::Require,
            Some("verify-ca") => ServerTlsMode::VerifyCa,
            Some("verify-full") => ServerTlsMode::VerifyFull,
            None if passes => ServerTlsMode::Disable,
            Some(_) | None => ServerTlsMode::Prefer,
        };
        let (ca, crl) = (self.path("server_tls.ca"), self.path("server_tls.crl"));
        let certificate = self.certificate("server_tls");
        let given = ca.is_some() || crl.is_some() || certificate.is_some();
        if mode == ServerTlsMode::Disable && given {
            self.error("server_tls.mode", "must not be disable for the other keys to be of use");
        }
        let unread = mode == ServerTlsMode::Prefer && (ca.is_some() || crl.is_some());
        if unread {
            let text = "prefer looks at no certificate: require at least, or leave ca and crl out";
            self.error("server_tls.mode", text);
        }
        ServerTls { mode, ca, crl, certificate }
    }

    /// What does not go together.
    fn together(&mut self, read: &ProxySecurity) {
        let tls = read.tls.mode != ClientTlsMode::Disable;
        match read.auth {
            ProxyAuth::PassThrough => {
                if read.has_stored_passwords() {
                    let text = "pass_through looks at no stored password: choose scram-sha-256, \
                                md5 or rules, or leave users_file and auth_user out";
                    self.error("auth", text);
                }
                // The client binds to the proxy's certificate, which the server does not know.
                if tls && read.server_tls.mode != ServerTlsMode::Disable {
                    let text = "with TLS on both sides SCRAM's channel binding cannot pass \
                                through: choose scram-sha-256 with users_file or auth_user, or \
                                disable one of tls and server_tls";
                    self.error("auth", text);
                }
                if read.tls.ca.is_some() {
                    self.error("tls.ca", "no certificate of a client passes through");
                }
            }
            ProxyAuth::Scram | ProxyAuth::Md5 => {
                if !read.has_stored_passwords() {
                    self.error("auth", "needs stored passwords: set users_file or auth_user");
                }
            }
            ProxyAuth::Cert => {
                if read.tls.mode != ClientTlsMode::Require {
                    self.error("tls.mode", "must be require for auth: cert");
                }
                if read.tls.ca.is_none() {
                    self.error("tls.ca", "is required by auth: cert");
                }
            }
            ProxyAuth::Trust | ProxyAuth::Rules(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(section: &str) -> (ProxySecurity, Vec<String>) {
        let tree = Node::from_yaml(&format!("pgherd: {{proxy: {section}}}"), 0).expect("YAML");
        let mut problems = Vec::new();
        let read = ProxySecurity::read(&tree, &mut problems);
        (read, problems.iter().map(Problem::to_string).collect())
    }

    fn good(section: &str) -> ProxySecurity {
        let (read, problems) = read(section);
        assert_eq!(problems, Vec::<String>::new(), "{section}");
        read
    }

    #[test]
    fn without_any_key_clients_authenticate_to_the_server_and_nothing_is_encrypted() {
        assert_eq!(good("{name: p}"), ProxySecurity::default());
    }

    #[test]
    fn keys_are_read() {
        let section = "{auth: scram-sha-256, users_file: /u, auth_user: asker, \
                       auth_password_file: /p, tls: {mode: require, cert: /c, key: /k}, \
                       server_tls: {mode: verify-full, ca: /ca, crl: /crl}, \
                       proxy_protocol: {in: require, out: v2}}";
        let read = good(section);
        assert_eq!(read.auth.method(), Some(AuthMethod::Scram));
        let query = read.auth_query.as_ref().expect("given");
        assert_eq!((query.user.as_str(), query.database.as_str()), ("asker", "postgres"));
        assert!(query.query.contains("pg_shadow") && query.query.contains("$1"));
        assert_eq!(query.password_file, Some("/p".into()));
        assert_eq!(read.tls.mode, ClientTlsMode::Require);
        assert_eq!(
            read.tls.certificate.as_ref().map(|c| c.keyfile.clone()),
            Some(Some("/k".into()))
        );
        assert_eq!(read.server_tls.mode, ServerTlsMode::VerifyFull);
        assert_eq!(read.proxy_protocol_out, Some(ProxyProtocol::V2));
        assert!(read.proxy_protocol_in && read.has_stored_passwords());
    }

    #[test]
    fn words_choose() {
        let mode = |section: &str| good(section).server_tls.mode;
        assert_eq!(mode("{auth: trust}"), ServerTlsMode::Prefer, "libpq's default");
        assert_eq!(mode("{auth: trust, server_tls: {mode: disable}}"), ServerTlsMode::Disable);
        assert_eq!(mode("{server_tls: {mode: require}}"), ServerTlsMode::Require);
        assert_eq!(mode("{server_tls: {mode: verify-ca}}"), ServerTlsMode::VerifyCa);
        assert_eq!(good("{auth: rules, rules_file: /r}").auth, ProxyAuth::Rules("/r".into()));
        let section = "{auth: cert, tls: {mode: require, cert: /c, ca: /ca}}";
        assert_eq!(good(section).auth, ProxyAuth::Cert);
        assert_eq!(good("{auth: md5, users_file: /u}").auth, ProxyAuth::Md5);
        let section = "{auth: trust, proxy_protocol: {in: off, out: off}}";
        assert_eq!(good(section).proxy_protocol_out, None);
    }

    #[test]
    fn what_does_not_go_together_is_refused_with_a_reason() {
        for (section, says) in [
            ("{auth: scram-sha-256}", "auth: needs stored passwords"),
            ("{users_file: /u}", "auth: pass_through looks at no stored password"),
            ("{auth: rules}", "rules_file: is required"),
            ("{auth: trust, rules_file: /r}", "rules_file: is of no use"),
            ("{auth: trust, auth_database: d}", "auth_database: is of no use without auth_user"),
            ("{auth: md5, auth_user: a, auth_query: select 1}", "auth_query: must ask for one"),
            ("{auth: cert}", "tls.mode: must be require for auth: cert"),
            ("{auth: cert, tls: {mode: require, cert: /c}}", "tls.ca: is required by auth: cert"),
            ("{tls: {mode: allow}}", "tls.cert: is required"),
            ("{tls: {cert: /c}}", "tls.mode: must be allow or require"),
            ("{tls: {mode: allow, cert: /c, ca: /a}}", "tls.ca: no certificate of a client passes"),
            ("{tls: {mode: allow, cert: /c, key: /k}, server_tls: {mode: prefer}}", "both sides"),
            ("{server_tls: {ca: /c}}", "server_tls.mode: must not be disable"),
            ("{auth: trust, server_tls: {ca: /c}}", "server_tls.mode: prefer looks at no"),
            ("{auth: trust, server_tls: {key: /k, mode: require}}", "server_tls.key: is of no use"),
        ] {
            let (_, problems) = read(section);
            assert!(problems.iter().any(|p| p.contains(says)), "{section}: {problems:?}");
        }
    }
}
